/* The reference for loading: what a destination costs that does nothing else.
 *
 *     connection -> channel thread -> device: 0 1 2 3 .. -> writer thread -> descriptor
 *
 * A thread for each connection receives packets into buffers of a pool. A thread for
 * each device writes its buffers to a descriptor, strictly by index. That is the shape
 * of QEMU's receive threads and VFIO's load threads, without the copy between them.
 *
 * What comes over the main channel is only counted, to know when the switchover begins:
 * writers start there, and the clock. Prints its port, and at the end what it cost.
 */
#include "common.h"
#include "wire.h"

#include <getopt.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <unistd.h>

enum { MIN_WINDOW = 16, QUEUED_BYTES = 16 << 20, DISCARD = 64 << 10 };

struct buffer {
    struct buffer *next;
    uint8_t *data;
    uint32_t size;
    bool is_config;
};

struct device {
    char idstr[256];
    int fd;
    pthread_t writer;
    pthread_mutex_t mutex;
    pthread_cond_t due_came; /* the buffer that the writer waits for is there */
    pthread_cond_t moved;    /* the writer has taken one, so the window has moved */
    struct buffer **waiting; /* by index, modulo the window */
    uint32_t due;
};

struct connection {
    int fd;
    pthread_t thread;
};

static int channels = 4, device_count = 4;
static uint32_t packet_size = 1 << 20, window;
static size_t switchover_at;
static uint8_t *config;
static size_t config_size;
static struct device devices[MAX_DEVICES];
static atomic_ullong written;
static double began;

/* --- Buffers. The one that was used last is the next, for it is still in the cache. */

static pthread_mutex_t pool_mutex = PTHREAD_MUTEX_INITIALIZER;
static struct buffer *pool;

static struct buffer *take_buffer(void)
{
    pthread_mutex_lock(&pool_mutex);
    struct buffer *buffer = pool;
    if (buffer)
        pool = buffer->next;
    pthread_mutex_unlock(&pool_mutex);
    if (!buffer) {
        buffer = calloc(1, sizeof *buffer);
        if (!buffer)
            die("calloc");
        buffer->data = pages(packet_size);
    }
    return buffer;
}

static void give_back(struct buffer *buffer)
{
    pthread_mutex_lock(&pool_mutex);
    buffer->next = pool;
    pool = buffer;
    pthread_mutex_unlock(&pool_mutex);
}

/* --- A device */

static void deliver(struct device *device, uint32_t idx, struct buffer *buffer)
{
    pthread_mutex_lock(&device->mutex);
    /* The one that is due always has a place, so this cannot wait for itself. */
    while (idx - device->due >= window)
        pthread_cond_wait(&device->moved, &device->mutex);
    device->waiting[idx % window] = buffer;
    if (idx == device->due)
        pthread_cond_signal(&device->due_came);
    pthread_mutex_unlock(&device->mutex);
}

static struct buffer *take_due(struct device *device)
{
    pthread_mutex_lock(&device->mutex);
    struct buffer **place = &device->waiting[device->due % window];
    while (!*place)
        pthread_cond_wait(&device->due_came, &device->mutex);
    struct buffer *buffer = *place;
    *place = NULL;
    device->due++;
    pthread_cond_broadcast(&device->moved);
    pthread_mutex_unlock(&device->mutex);
    return buffer;
}

static void *write_device(void *argument)
{
    struct device *device = argument;
    bool is_config = false;
    while (!is_config) {
        struct buffer *buffer = take_due(device);
        is_config = buffer->is_config;
        if (is_config) {
            if (buffer->size != config_size || memcmp(buffer->data, config, config_size))
                fail("another config than was sent");
        } else {
            write_all(device->fd, buffer->data, buffer->size);
            written += buffer->size;
        }
        give_back(buffer);
    }
    return NULL;
}

static void start_writers(void)
{
    began = now();
    for (int i = 0; i < device_count; i++)
        if (pthread_create(&devices[i].writer, NULL, write_device, &devices[i]))
            fail("no thread for a device");
}

static struct device *find_device(const char *idstr)
{
    for (int i = 0; i < device_count; i++)
        if (!memcmp(devices[i].idstr, idstr, sizeof devices[i].idstr))
            return &devices[i];
    fail("a packet of an unknown device");
}

/* --- Connections */

static void receive_main(int fd)
{
    uint8_t bytes[DISCARD];
    size_t left = switchover_at - sizeof(uint32_t);
    while (left) {
        size_t piece = left < sizeof bytes ? left : sizeof bytes;
        if (receive_all(fd, bytes, piece) != piece)
            fail("the main channel ended before the switchover");
        left -= piece;
    }
    if (receive_all(fd, bytes, sizeof SWITCHOVER_START) != sizeof SWITCHOVER_START ||
        memcmp(bytes, SWITCHOVER_START, sizeof SWITCHOVER_START))
        fail("no SWITCHOVER_START at byte %zu", switchover_at);
    start_writers();
    while (receive_all(fd, bytes, sizeof bytes) == sizeof bytes)
        ;
}

static void check(const struct header *header)
{
    if (ntohl(header->magic) != MULTIFD_MAGIC || ntohl(header->version) != MULTIFD_VERSION)
        fail("not a packet");
    if (ntohl(header->flags) != DEVICE_STATE || header->vfio_version || header->instance)
        fail("a packet of another kind");
    uint32_t payload = ntohl(header->payload);
    if (payload < VFIO_HEADER || payload - VFIO_HEADER > packet_size)
        fail("a packet of %u bytes", payload);
}

static void receive_channel(int fd)
{
    struct initial initial;
    size_t rest = sizeof initial - sizeof initial.magic;
    if (receive_all(fd, &initial.version, rest) != rest)
        fail("a channel ended in its first packet");
    for (;;) {
        struct header header;
        size_t got = receive_all(fd, &header, sizeof header);
        if (got == 0)
            return;
        if (got != sizeof header)
            fail("a channel ended in a header");
        check(&header);
        struct device *device = find_device(header.idstr);
        struct buffer *buffer = take_buffer();
        buffer->size = ntohl(header.payload) - VFIO_HEADER;
        buffer->is_config = ntohl(header.vfio_flags) & CONFIG;
        if (receive_all(fd, buffer->data, buffer->size) != buffer->size)
            fail("a channel ended in a packet");
        deliver(device, ntohl(header.idx), buffer);
    }
}

static void *receive_connection(void *argument)
{
    struct connection *connection = argument;
    uint32_t magic;
    if (receive_all(connection->fd, &magic, sizeof magic) != sizeof magic)
        fail("a connection ended before it began");
    if (ntohl(magic) == MAIN_MAGIC)
        receive_main(connection->fd);
    else if (ntohl(magic) == MULTIFD_MAGIC)
        receive_channel(connection->fd);
    else
        fail("a connection that is neither");
    return NULL;
}

/* --- */

static void make_devices(const int *fds)
{
    window = QUEUED_BYTES / packet_size;
    if (window < MIN_WINDOW)
        window = MIN_WINDOW;
    for (int i = 0; i < device_count; i++) {
        struct device *device = &devices[i];
        name_device(device->idstr, i);
        device->fd = fds[i];
        pthread_mutex_init(&device->mutex, NULL);
        pthread_cond_init(&device->due_came, NULL);
        pthread_cond_init(&device->moved, NULL);
        device->waiting = calloc(window, sizeof *device->waiting);
        if (!device->waiting)
            die("calloc");
    }
}

static void parse(int argc, char **argv)
{
    static const struct option options[] = {
        {"channels", required_argument, NULL, 'c'},
        {"packet", required_argument, NULL, 'p'},
        {"switchover-at", required_argument, NULL, 's'},
        {"fds", required_argument, NULL, 'f'},
        {"config", required_argument, NULL, 'C'},
        {0},
    };
    int fds[MAX_DEVICES], option;
    device_count = 0;
    while ((option = getopt_long(argc, argv, "", options, NULL)) != -1) {
        switch (option) {
        case 'c': channels = atoi(optarg); break;
        case 'p': packet_size = (uint32_t)strtoul(optarg, NULL, 10); break;
        case 's': switchover_at = strtoul(optarg, NULL, 10); break;
        case 'f': device_count = parse_numbers(optarg, fds, MAX_DEVICES); break;
        case 'C': config = read_file(optarg, &config_size); break;
        default: exit(2);
        }
    }
    if (channels < 1 || channels > MAX_CHANNELS || !packet_size || !device_count ||
        switchover_at < sizeof(uint32_t) || !config)
        fail("usage: receive --channels N --packet BYTES --switchover-at BYTE --config FILE"
             " --fds A,B..");
    make_devices(fds);
}

int main(int argc, char **argv)
{
    struct connection connections[MAX_CHANNELS + 1] = {0};
    parse(argc, argv);
    signal(SIGPIPE, SIG_IGN);
    int listener = listen_here();
    begin_usage();
    for (int i = 0; i < channels + 1; i++) {
        connections[i].fd = accept_one(listener);
        if (pthread_create(&connections[i].thread, NULL, receive_connection, &connections[i]))
            fail("no thread for a connection");
    }
    /* The main one too, so writers have been started. */
    for (int i = 0; i < channels + 1; i++)
        pthread_join(connections[i].thread, NULL);
    for (int i = 0; i < device_count; i++)
        pthread_join(devices[i].writer, NULL);
    double seconds = now() - began;
    for (int i = 0; i < channels + 1; i++)
        close(connections[i].fd);
    print_result("\"bytes\": %llu, \"seconds\": %.6f, ", (unsigned long long)written, seconds);
    return 0;
}
