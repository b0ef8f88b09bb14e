/* A copy loop over one socket: the least that takes state from here to there.
 *
 *     copy send --port PORT --fds A,B..      descriptors, one behind the other
 *     copy receive --fds A,B..               prints its port
 *
 * The source's clock runs from before the first byte until the destination, which has
 * written everything then, closes the connection.
 */
#include "common.h"

#include <errno.h>
#include <getopt.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

enum { BUFFER = 1 << 20 };

static int fds[MAX_DEVICES], count, port;
static uint8_t *buffer;
static struct timespec settle = {.tv_nsec = 100 * 1000 * 1000};

static uint64_t send_one(int to, int fd)
{
    struct stat status;
    if (fstat(fd, &status))
        die("fstat");
    uint64_t left = (uint64_t)status.st_size;
    struct iovec length = {&left, sizeof left};
    send_all(to, &length, 1);
    for (;;) {
        size_t size = read_all(fd, buffer, BUFFER);
        if (size == 0)
            return (uint64_t)status.st_size;
        struct iovec piece = {buffer, size};
        send_all(to, &piece, 1);
    }
}

static uint64_t receive_one(int from, int fd)
{
    uint64_t size;
    if (receive_all(from, &size, sizeof size) != sizeof size)
        fail("it ended before all had come");
    for (uint64_t left = size; left;) {
        size_t piece = left < BUFFER ? (size_t)left : BUFFER;
        if (receive_all(from, buffer, piece) != piece)
            fail("it ended early");
        write_all(fd, buffer, piece);
        left -= piece;
    }
    return size;
}

static void send_files(void)
{
    char byte;
    uint64_t bytes = 0;
    begin_usage();
    int to = connect_to(port);
    nanosleep(&settle, NULL);
    double began = now();
    for (int i = 0; i < count; i++)
        bytes += send_one(to, fds[i]);
    shutdown(to, SHUT_WR);
    if (recv(to, &byte, 1, 0) != 0)
        fail("the destination broke it off");
    double seconds = now() - began;
    print_result("\"bytes\": %llu, \"seconds\": %.6f, ", (unsigned long long)bytes, seconds);
}

static void receive_files(void)
{
    uint64_t bytes = 0;
    int listener = listen_here();
    begin_usage();
    int from = accept_one(listener);
    double began = now();
    for (int i = 0; i < count; i++)
        bytes += receive_one(from, fds[i]);
    double seconds = now() - began;
    close(from);
    print_result("\"bytes\": %llu, \"seconds\": %.6f, ", (unsigned long long)bytes, seconds);
}

int main(int argc, char **argv)
{
    static const struct option options[] = {
        {"port", required_argument, NULL, 'P'},
        {"fds", required_argument, NULL, 'f'},
        {0},
    };
    int option;
    while ((option = getopt_long(argc, argv, "", options, NULL)) != -1) {
        switch (option) {
        case 'P': port = atoi(optarg); break;
        case 'f': count = parse_numbers(optarg, fds, MAX_DEVICES); break;
        default: return 2;
        }
    }
    signal(SIGPIPE, SIG_IGN);
    buffer = pages(BUFFER);
    if (optind == argc - 1 && !strcmp(argv[optind], "send") && port && count)
        send_files();
    else if (optind == argc - 1 && !strcmp(argv[optind], "receive") && count)
        receive_files();
    else
        fail("usage: copy send --port PORT --fds A,B.. | copy receive --fds A,B..");
    return 0;
}
