/* The reference for saving, and the source that every destination is measured with.
 *
 * With --fds, a thread for each device reads its descriptor into buffers, and the thread
 * of whichever connection is idle sends them:
 *
 *     descriptor -> reader thread -> queue -> channel thread -> connection
 *
 * With --bytes the data is made up: each channel thread takes the next packet of one
 * sequence in which devices take turns, so that the source costs as little as can be.
 *
 * The clock runs from just before SWITCHOVER_START until the destination has closed the
 * main channel. Prints what it saw and what it cost.
 */
#include "common.h"
#include "wire.h"

#include <errno.h>
#include <getopt.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

enum { FILL = 0x5a };

struct packet {
    struct packet *next;
    uint8_t *data;
    uint32_t device, idx, size;
    bool is_config;
};

static int port, channels = 4, device_count = 4;
static uint32_t packet_size = 1 << 20;
static uint64_t made_up_bytes;
static int fds[MAX_DEVICES];
static bool has_fds;
static uint8_t *before, *after, *config;
static size_t before_size, after_size, config_size;
static struct timespec settle = {.tv_nsec = 100 * 1000 * 1000};
static atomic_ullong sent;

static void send_packet(int fd, const struct packet *packet)
{
    struct header header = {
        .magic = htonl(MULTIFD_MAGIC),
        .version = htonl(MULTIFD_VERSION),
        .flags = htonl(DEVICE_STATE),
        .payload = htonl(VFIO_HEADER + packet->size),
        .idx = htonl(packet->idx),
        .vfio_flags = htonl(packet->is_config ? CONFIG : 0),
    };
    name_device(header.idstr, (int)packet->device);
    struct iovec pieces[] = {{&header, sizeof header}, {packet->data, packet->size}};
    send_all(fd, pieces, 2);
    if (!packet->is_config)
        sent += packet->size;
}

/* --- Made-up data */

static void *make_up(void *argument)
{
    static atomic_ullong sequence;
    int fd = *(int *)argument;
    uint32_t devices = (uint32_t)device_count;
    uint64_t data_packets = made_up_bytes / packet_size;
    uint8_t *data = pages(packet_size);
    memset(data, FILL, packet_size);
    for (;;) {
        uint64_t number = sequence++;
        if (number >= data_packets + devices)
            return NULL;
        struct packet packet = {
            .data = data,
            .device = (uint32_t)(number % devices),
            .idx = (uint32_t)(number / devices),
            .size = packet_size,
            .is_config = number >= data_packets,
        };
        if (packet.is_config) {
            packet.data = config;
            packet.size = (uint32_t)config_size;
        } else {
            /* What `content.py` expects at the beginning of each. */
            uint64_t stamp[] = {packet.device, packet.idx};
            memcpy(data, stamp, sizeof stamp);
        }
        send_packet(fd, &packet);
    }
}

/* --- Data of devices */

static pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t queued = PTHREAD_COND_INITIALIZER;
static pthread_cond_t given_back = PTHREAD_COND_INITIALIZER;
static struct packet *first, **last = &first, *unused;
static int readers_left;

static void make_packets(int count)
{
    while (count--) {
        struct packet *packet = calloc(1, sizeof *packet);
        if (!packet)
            die("calloc");
        packet->data = pages(packet_size);
        packet->next = unused;
        unused = packet;
    }
}

static struct packet *take_unused(void)
{
    pthread_mutex_lock(&mutex);
    while (!unused)
        pthread_cond_wait(&given_back, &mutex);
    struct packet *packet = unused;
    unused = packet->next;
    pthread_mutex_unlock(&mutex);
    return packet;
}

static void give_back(struct packet *packet)
{
    pthread_mutex_lock(&mutex);
    packet->next = unused;
    unused = packet;
    pthread_cond_signal(&given_back);
    pthread_mutex_unlock(&mutex);
}

static void queue(struct packet *packet)
{
    pthread_mutex_lock(&mutex);
    packet->next = NULL;
    *last = packet;
    last = &packet->next;
    pthread_cond_signal(&queued);
    pthread_mutex_unlock(&mutex);
}

/* Returns NULL if there will be no more. */
static struct packet *take_queued(void)
{
    pthread_mutex_lock(&mutex);
    while (!first && readers_left)
        pthread_cond_wait(&queued, &mutex);
    struct packet *packet = first;
    if (packet) {
        first = packet->next;
        if (!first)
            last = &first;
    }
    pthread_mutex_unlock(&mutex);
    return packet;
}

static void *read_device(void *argument)
{
    int device = (int)(intptr_t)argument;
    bool is_config = false;
    for (uint32_t idx = 0; !is_config; idx++) {
        struct packet *packet = take_unused();
        packet->device = (uint32_t)device;
        packet->idx = idx;
        packet->size = (uint32_t)read_all(fds[device], packet->data, packet_size);
        packet->is_config = is_config = packet->size == 0;
        if (is_config) {
            packet->size = (uint32_t)config_size;
            memcpy(packet->data, config, config_size);
        }
        queue(packet);
    }
    pthread_mutex_lock(&mutex);
    readers_left--;
    pthread_cond_broadcast(&queued);
    pthread_mutex_unlock(&mutex);
    return NULL;
}

static void *send_queued(void *argument)
{
    int fd = *(int *)argument;
    struct packet *packet;
    while ((packet = take_queued())) {
        send_packet(fd, packet);
        give_back(packet);
    }
    return NULL;
}

/* --- */

static void start(pthread_t *thread, void *(*function)(void *), void *argument)
{
    if (pthread_create(thread, NULL, function, argument))
        fail("no thread");
}

static void send_state(int *channel_fds)
{
    pthread_t senders[MAX_CHANNELS], readers[MAX_DEVICES];
    if (has_fds)
        for (int i = 0; i < device_count; i++)
            start(&readers[i], read_device, (void *)(intptr_t)i);
    for (int i = 0; i < channels; i++)
        start(&senders[i], has_fds ? send_queued : make_up, &channel_fds[i]);
    if (has_fds)
        for (int i = 0; i < device_count; i++)
            pthread_join(readers[i], NULL);
    for (int i = 0; i < channels; i++)
        pthread_join(senders[i], NULL);
}

static int open_channel(int id)
{
    struct initial initial = {
        .magic = htonl(MULTIFD_MAGIC),
        .version = htonl(MULTIFD_VERSION),
        .id = (uint8_t)id,
    };
    int fd = connect_to(port);
    write_all(fd, &initial, sizeof initial);
    return fd;
}

static void wait_closed(int fd)
{
    char byte;
    ssize_t count;
    do
        count = recv(fd, &byte, 1, 0);
    while (count < 0 && errno == EINTR);
    if (count > 0)
        fail("the destination answers");
    if (count < 0 && errno != ECONNRESET)
        die("main channel");
}

static void parse(int argc, char **argv)
{
    static const struct option options[] = {
        {"port", required_argument, NULL, 'P'},
        {"channels", required_argument, NULL, 'c'},
        {"devices", required_argument, NULL, 'd'},
        {"packet", required_argument, NULL, 'p'},
        {"bytes", required_argument, NULL, 'b'},
        {"fds", required_argument, NULL, 'f'},
        {"before", required_argument, NULL, 'B'},
        {"after", required_argument, NULL, 'A'},
        {"config", required_argument, NULL, 'C'},
        {0},
    };
    int option;
    while ((option = getopt_long(argc, argv, "", options, NULL)) != -1) {
        switch (option) {
        case 'P': port = atoi(optarg); break;
        case 'c': channels = atoi(optarg); break;
        case 'd': device_count = atoi(optarg); break;
        case 'p': packet_size = (uint32_t)strtoul(optarg, NULL, 10); break;
        case 'b': made_up_bytes = strtoull(optarg, NULL, 10); break;
        case 'f':
            device_count = parse_numbers(optarg, fds, MAX_DEVICES);
            has_fds = true;
            break;
        case 'B': before = read_file(optarg, &before_size); break;
        case 'A': after = read_file(optarg, &after_size); break;
        case 'C': config = read_file(optarg, &config_size); break;
        default: exit(2);
        }
    }
    if (!port || channels < 1 || channels > MAX_CHANNELS || device_count < 1 ||
        device_count > MAX_DEVICES || packet_size < 16 || !before || !after || !config ||
        config_size > packet_size)
        fail("usage: send --port PORT --channels N --packet BYTES --before FILE --after FILE"
             " --config FILE (--fds A,B.. | --devices N --bytes N)");
}

int main(int argc, char **argv)
{
    int channel_fds[MAX_CHANNELS];
    parse(argc, argv);
    signal(SIGPIPE, SIG_IGN);
    if (has_fds) {
        make_packets(2 * channels + device_count);
        readers_left = device_count;
    }
    begin_usage();
    int main_fd = connect_to(port);
    for (int i = 0; i < channels; i++)
        channel_fds[i] = open_channel(i);
    write_all(main_fd, before, before_size);
    /* The guest would run here. The destination takes its connections. */
    nanosleep(&settle, NULL);
    double began = now();
    write_all(main_fd, SWITCHOVER_START, sizeof SWITCHOVER_START);
    send_state(channel_fds);
    write_all(main_fd, after, after_size);
    for (int i = 0; i < channels; i++)
        close(channel_fds[i]);
    shutdown(main_fd, SHUT_WR);
    wait_closed(main_fd);
    double seconds = now() - began;
    print_result("\"bytes\": %llu, \"seconds\": %.6f, ", (unsigned long long)sent, seconds);
    return 0;
}
