#include "common.h"

#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

static struct rusage usage_before;
static long resident_before;

_Noreturn void die(const char *what)
{
    perror(what);
    exit(1);
}

_Noreturn void fail(const char *format, ...)
{
    va_list arguments;
    va_start(arguments, format);
    vfprintf(stderr, format, arguments);
    va_end(arguments);
    fputc('\n', stderr);
    exit(1);
}

double now(void)
{
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return (double)time.tv_sec + (double)time.tv_nsec * 1e-9;
}

/* Not ru_maxrss: that is inherited from whoever started the program. */
static long status_kib(const char *name)
{
    char line[128];
    long kib = -1;
    FILE *status = fopen("/proc/self/status", "r");
    if (!status)
        die("/proc/self/status");
    while (fgets(line, sizeof line, status))
        if (!strncmp(line, name, strlen(name)))
            kib = strtol(line + strlen(name), NULL, 10);
    fclose(status);
    return kib;
}

void begin_usage(void)
{
    resident_before = status_kib("VmRSS:");
    getrusage(RUSAGE_SELF, &usage_before);
}

static double between(struct timeval from, struct timeval to)
{
    return (double)(to.tv_sec - from.tv_sec) + (double)(to.tv_usec - from.tv_usec) * 1e-6;
}

void print_result(const char *fields, ...)
{
    struct rusage usage;
    getrusage(RUSAGE_SELF, &usage);
    va_list arguments;
    va_start(arguments, fields);
    putchar('{');
    vprintf(fields, arguments);
    va_end(arguments);
    printf("\"utime\": %.6f, \"stime\": %.6f, \"rss_start_kib\": %ld, \"rss_peak_kib\": %ld}\n",
           between(usage_before.ru_utime, usage.ru_utime),
           between(usage_before.ru_stime, usage.ru_stime), resident_before,
           status_kib("VmHWM:"));
    fflush(stdout);
}

size_t read_all(int fd, void *to, size_t size)
{
    size_t got = 0;
    while (got < size) {
        ssize_t count = read(fd, (char *)to + got, size - got);
        if (count < 0 && errno == EINTR)
            continue;
        if (count < 0)
            die("read");
        if (count == 0)
            break;
        got += (size_t)count;
    }
    return got;
}

size_t receive_all(int fd, void *to, size_t size)
{
    size_t got = 0;
    while (got < size) {
        ssize_t count = recv(fd, (char *)to + got, size - got, MSG_WAITALL);
        if (count < 0 && errno == EINTR)
            continue;
        if (count < 0)
            die("recv");
        if (count == 0)
            break;
        got += (size_t)count;
    }
    return got;
}

void write_all(int fd, const void *from, size_t size)
{
    size_t done = 0;
    while (done < size) {
        ssize_t count = write(fd, (const char *)from + done, size - done);
        if (count < 0 && errno == EINTR)
            continue;
        if (count < 0)
            die("write");
        done += (size_t)count;
    }
}

void send_all(int fd, struct iovec *pieces, int count)
{
    while (count > 0) {
        struct msghdr message = {.msg_iov = pieces, .msg_iovlen = (size_t)count};
        ssize_t result = sendmsg(fd, &message, MSG_NOSIGNAL);
        if (result < 0 && errno == EINTR)
            continue;
        if (result < 0)
            die("sendmsg");
        size_t sent = (size_t)result;
        while (count > 0 && sent >= pieces->iov_len) {
            sent -= pieces->iov_len;
            pieces++;
            count--;
        }
        if (count > 0) {
            pieces->iov_base = (char *)pieces->iov_base + sent;
            pieces->iov_len -= sent;
        }
    }
}

void *pages(size_t size)
{
    int flags = MAP_PRIVATE | MAP_ANONYMOUS;
    void *memory = mmap(NULL, size, PROT_READ | PROT_WRITE, flags, -1, 0);
    if (memory == MAP_FAILED)
        die("mmap");
    return memory;
}

static void no_delay(int fd)
{
    int on = 1;
    if (setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on))
        die("TCP_NODELAY");
}

static struct sockaddr_in here(int port)
{
    return (struct sockaddr_in){
        .sin_family = AF_INET,
        .sin_addr.s_addr = htonl(INADDR_LOOPBACK),
        .sin_port = htons((uint16_t)port),
    };
}

int listen_here(void)
{
    struct sockaddr_in address = here(0);
    socklen_t size = sizeof address;
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (fd < 0 || bind(fd, (struct sockaddr *)&address, size) || listen(fd, 128) ||
        getsockname(fd, (struct sockaddr *)&address, &size))
        die("listen");
    printf("{\"port\": %d}\n", ntohs(address.sin_port));
    fflush(stdout);
    return fd;
}

int accept_one(int listener)
{
    int fd;
    do
        fd = accept4(listener, NULL, NULL, SOCK_CLOEXEC);
    while (fd < 0 && errno == EINTR);
    if (fd < 0)
        die("accept");
    no_delay(fd);
    return fd;
}

int connect_to(int port)
{
    struct sockaddr_in address = here(port);
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (fd < 0 || connect(fd, (struct sockaddr *)&address, sizeof address))
        die("connect");
    no_delay(fd);
    return fd;
}

uint8_t *read_file(const char *path, size_t *size)
{
    struct stat status;
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0 || fstat(fd, &status))
        die(path);
    *size = (size_t)status.st_size;
    uint8_t *content = malloc(*size + 1);
    if (!content)
        die("malloc");
    if (read_all(fd, content, *size) != *size)
        fail("%s: it ends early", path);
    close(fd);
    return content;
}

int parse_numbers(const char *text, int *numbers, int most)
{
    int count = 0;
    while (*text) {
        char *end;
        if (count == most)
            fail("more than %d numbers", most);
        numbers[count++] = (int)strtol(text, &end, 10);
        if (end == text || (*end && *end != ','))
            fail("no numbers: %s", text);
        text = *end ? end + 1 : end;
    }
    return count;
}
