/* What the programs share: the clock, what they cost, sockets, options. */
#ifndef COMMON_H
#define COMMON_H

#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>
#include <sys/uio.h>

enum { MAX_CHANNELS = 64, MAX_DEVICES = 64 };

/* Ends the program: with errno's text, and with a text of its own. */
_Noreturn void die(const char *what);
_Noreturn void fail(const char *format, ...) __attribute__((format(printf, 1, 2)));

/* Seconds of a clock that only goes forward. */
double now(void);

/* Starts to count processor time; what is resident now is the program's own. */
void begin_usage(void);

/* Prints one line of JSON: what `begin_usage` began, and `fields` before it. */
void print_result(const char *fields, ...) __attribute__((format(printf, 1, 2)));

/* Reads as much as is wanted. Returns how much there was before the end. */
size_t read_all(int fd, void *to, size_t size);

/* The same for a socket, in as few calls as can be. */
size_t receive_all(int fd, void *to, size_t size);

void write_all(int fd, const void *from, size_t size);
void send_all(int fd, struct iovec *pieces, int count);

/* Memory in whole pages. */
void *pages(size_t size);

/* Listens on a port of this host's, which it prints as a line of JSON. */
int listen_here(void);
int accept_one(int listener);
int connect_to(int port);

/* Returns the content of a file; the caller owns it. */
uint8_t *read_file(const char *path, size_t *size);

/* Parses numbers separated by commas. Returns how many there are, at most `most`. */
int parse_numbers(const char *text, int *numbers, int most);

#endif
