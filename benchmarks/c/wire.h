/* What a multifd channel carries. All integers are big endian. */
#ifndef WIRE_H
#define WIRE_H

#include <arpa/inet.h>
#include <assert.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

enum {
    MAIN_MAGIC = 0x5145564d, /* "QEVM", the first bytes of a main channel */
    MULTIFD_MAGIC = 0x11223344,
    MULTIFD_VERSION = 1,
    DEVICE_STATE = 0x40, /* flag of a packet */
    CONFIG = 1,          /* flag of VFIO's: the last packet of a device */
    VFIO_HEADER = 12,    /* bytes of the payload that are not data */
};

/* The first packet of a channel. */
struct initial {
    uint32_t magic;
    uint32_t version;
    uint8_t uuid[16];
    uint8_t id;
    uint8_t unused[39];
} __attribute__((packed));

/* All of a device-state packet but its data. */
struct header {
    uint32_t magic;
    uint32_t version;
    uint32_t flags;
    char idstr[256];
    uint32_t instance;
    uint32_t payload; /* bytes that follow: VFIO_HEADER and the data */
    uint32_t vfio_version;
    uint32_t idx;
    uint32_t vfio_flags;
} __attribute__((packed));

static_assert(sizeof(struct initial) == 64, "initial packet");
static_assert(sizeof(struct header) == 288, "device-state packet");

/* What begins the switchover on the main channel: a command, its number, no payload. */
static const uint8_t SWITCHOVER_START[5] = {0x08, 0, 11, 0, 0};

/* The name of device number `device`: what `programs/packet.py` calls it, too. */
static inline void name_device(char idstr[256], int device)
{
    memset(idstr, 0, 256);
    snprintf(idstr, 256, "0000:%02x:00.0/vfio", device + 1);
}

#endif
