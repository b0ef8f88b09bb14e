/* A device that takes its state from a pipe, its standard input.
 *
 * The bytes are moved to /dev/null without being copied, so that this costs next to
 * nothing. With --us-per-mib it takes that time for each MiB. With --check they go to
 * that descriptor instead, where they can be looked at.
 */
#include "common.h"

#include <errno.h>
#include <fcntl.h>
#include <getopt.h>
#include <stdlib.h>
#include <sys/prctl.h>
#include <time.h>
#include <unistd.h>

enum { MIB = 1 << 20 };

/* A sleep takes longer than it was asked to; shorter ones than this mostly that. */
static const double SHORTEST = 100e-6;
/* How much of what was slept too long may be made good. */
static const double MOST_CREDIT = 500e-6;

static double sleep_off(double debt)
{
    double began = now();
    struct timespec time = {.tv_nsec = (long)(debt * 1e9)};
    nanosleep(&time, NULL);
    debt -= now() - began;
    return debt < -MOST_CREDIT ? -MOST_CREDIT : debt;
}

int main(int argc, char **argv)
{
    static const struct option options[] = {
        {"us-per-mib", required_argument, NULL, 'u'},
        {"check", required_argument, NULL, 'c'},
        {0},
    };
    double seconds_per_byte = 0, debt = 0;
    int sink = -1, option;
    while ((option = getopt_long(argc, argv, "", options, NULL)) != -1) {
        switch (option) {
        case 'u': seconds_per_byte = strtod(optarg, NULL) * 1e-6 / MIB; break;
        case 'c': sink = atoi(optarg); break;
        default: return 2;
        }
    }
    if (sink < 0)
        sink = open("/dev/null", O_WRONLY);
    if (sink < 0)
        die("/dev/null");
    prctl(PR_SET_TIMERSLACK, 1, 0, 0, 0);
    for (;;) {
        ssize_t count = splice(STDIN_FILENO, NULL, sink, NULL, MIB, SPLICE_F_MOVE);
        if (count < 0 && errno == EINTR)
            continue;
        if (count < 0)
            die("splice");
        if (count == 0)
            return 0;
        debt += seconds_per_byte * (double)count;
        if (debt >= SHORTEST)
            debt = sleep_off(debt);
    }
}
