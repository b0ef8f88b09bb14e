/* A device that gives its state to a pipe: standard input, a file, to standard output.
 *
 * Pages of the file go into the pipe without being copied, as fast as it takes them.
 */
#include "common.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <unistd.h>

int main(void)
{
    signal(SIGPIPE, SIG_IGN);
    for (;;) {
        ssize_t count = splice(STDIN_FILENO, NULL, STDOUT_FILENO, NULL, 1 << 20, 0);
        if (count < 0 && errno == EINTR)
            continue;
        if (count < 0)
            die("splice");
        if (count == 0)
            return 0;
    }
}
