// SPDX-License-Identifier: Apache-2.0
//
// What every XDP program here needs: libbpf's way to declare maps, and the part of <linux/bpf.h> that
// is used. The numbers are the kernel's binary interface.

#pragma once

#define SEC(name) __attribute__((section(name), used))
#define __uint(name, value) int(*name)[value]
#define __type(name, value) typeof(value) *name

typedef unsigned char u8;
typedef unsigned short u16;
typedef unsigned int u32;
typedef unsigned long long u64;

struct xdp_md {
	u32 data, data_end, data_meta, ingress_ifindex, rx_queue_index, egress_ifindex;
};
enum { XDP_ABORTED = 0, XDP_DROP = 1, XDP_PASS = 2, XDP_REDIRECT = 4 };
enum {
	MAP_HASH = 1,
	MAP_ARRAY = 2,
	MAP_PERCPU_ARRAY = 6,
	MAP_LPM_TRIE = 11,
	MAP_DEVMAP = 14,
	MAP_XSKMAP = 17,
};
enum { BPF_F_NO_PREALLOC = 1, BPF_F_MMAPABLE = 1 << 10 };
static void *(*bpf_map_lookup_elem)(void *map, const void *key) = (void *)1;
