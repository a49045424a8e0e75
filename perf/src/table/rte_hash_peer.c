/* DPDK's rte_hash as a flow table, in a process of its own: `rte_hash_peer CPU OTHER_CPU FLOWS
 * KEY_WORDS KEYS`.
 *
 * It is a process because perf holds no unsafe code, and the parent waits while it works, so both
 * use one CPU in turns. Requests come on standard input and are answered on standard output, in the
 * machine's byte order; see rte_hash.rs for the other end. Flows arrive before the clock is started.
 *
 * It is used as well as its interface allows: lock-free readers (RW_CONCURRENCY_LF), bulk lookups
 * with hashes computed inline, key lengths it has vector comparisons for, entries on lines of their
 * own that are asked for a burst at a time, and memory on the same kind of pages as everybody else's
 * (an external heap, since EAL alone would take 4 KiB pages where none are reserved).
 *
 * One key: the position of a key is the number of its entry. Two keys: the data of a key is. */
#define _GNU_SOURCE
#include <errno.h>
#include <pthread.h>
#include <sched.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

#include <rte_eal.h>
#include <rte_errno.h>
#include <rte_hash.h>
#include <rte_hash_crc.h>
#include <rte_malloc.h>
#include <rte_prefetch.h>

#define BURST 32
#define HUGE_PAGE_BYTES (2UL << 20)
#define HEAP "flows"
#define HASH_SEED 0x85a308d3u
#define KEY_WORDS_MAX 6
#define WORKERS 2
#define FRAME_BYTES 60

enum { INSERT = 1, LOOK_UP, SHARE, REMOVE, SWEEP, AUDIT };

struct request {
    uint32_t command;
    uint32_t count; /* of records; in SHARE, of each worker */
    uint64_t now;
};

/* Sums are modulo 2^64. */
struct reply {
    uint64_t failed; /* 0, or an errno */
    uint64_t nanoseconds;
    uint64_t found;
    uint64_t state_sum;
    uint64_t packets_sum;
};

/* What every subject keeps of an IPv4 flow is 64 bytes, of an IPv6 flow 128. The key, which comes
 * first, is kept here too: the other direction's packets are rewritten by it. */
struct place {
    uint32_t deadline, state, packets, bytes, words;
};

static struct {
    struct rte_hash *hash;
    uint64_t *entries;
    uint32_t entries_max;
    uint32_t key_words;   /* as they arrive */
    uint32_t key_stride;  /* words of a key as rte_hash compares it */
    bool two_keys;
    struct place at;
    uint32_t *unused; /* two keys: entries that are free, the last ones first */
    uint32_t unused_count;
    uint64_t *keys; /* of the request, each padded to the stride */
    uint64_t *rest; /* of an INSERT: what follows the key */
    size_t records_max;
    int cpus[WORKERS];
} table;

static void give_up(const char *what, int number) {
    fprintf(stderr, "rte_hash: %s: %s\n", what, strerror(number));
    exit(1);
}

static uint64_t nanoseconds_of(clockid_t clock) {
    struct timespec time;
    clock_gettime(clock, &time);
    return (uint64_t)time.tv_sec * 1000000000u + (uint64_t)time.tv_nsec;
}

static bool read_all(void *to, size_t bytes) {
    return fread(to, 1, bytes, stdin) == bytes;
}

static bool answer(const struct reply *reply) {
    const char *next = (const char *)reply;
    for (size_t bytes = sizeof *reply; bytes > 0;) {
        ssize_t put = write(STDOUT_FILENO, next, bytes);
        if (put < 0 && errno == EINTR)
            continue;
        if (put <= 0)
            return false;
        next += put;
        bytes -= (size_t)put;
    }
    return true;
}

/* An external heap of `bytes` on pages that are huge where the kernel has any: its socket. */
static int make_heap(size_t bytes) {
    bytes = (bytes + HUGE_PAGE_BYTES - 1) / HUGE_PAGE_BYTES * HUGE_PAGE_BYTES;
    int kind = MAP_PRIVATE | MAP_ANONYMOUS;
    char *raw = mmap(NULL, bytes + HUGE_PAGE_BYTES, PROT_READ | PROT_WRITE, kind, -1, 0);
    if (raw == MAP_FAILED)
        give_up("mmap", errno);
    uintptr_t aligned = ((uintptr_t)raw + HUGE_PAGE_BYTES - 1) & ~(HUGE_PAGE_BYTES - 1);
    char *start = (char *)aligned;
    madvise(start, bytes, MADV_HUGEPAGE);
    if (rte_malloc_heap_create(HEAP) != 0)
        give_up("rte_malloc_heap_create", rte_errno);
    size_t pages = bytes / HUGE_PAGE_BYTES;
    if (rte_malloc_heap_memory_add(HEAP, start, bytes, NULL, (unsigned)pages, HUGE_PAGE_BYTES) != 0)
        give_up("rte_malloc_heap_memory_add", rte_errno);
    int socket = rte_malloc_heap_get_socket(HEAP);
    if (socket < 0)
        give_up("rte_malloc_heap_get_socket", rte_errno);
    return socket;
}

static void make_table(uint32_t flows) {
    /* rte_hash has room for what it is made for at up to 95 % of its buckets; a sixteenth more spares
     * it a last-moment search for room, and never changes the number of buckets of 10 M. */
    uint32_t keys_max = (flows + flows / 16 + 64) * (table.two_keys ? 2 : 1);
    table.entries_max = table.two_keys ? flows : keys_max;
    size_t entry_bytes = table.at.words * sizeof(uint64_t);
    size_t key_bytes = 2 * 8 + table.key_stride * sizeof(uint64_t) + 16;
    int socket = make_heap(table.entries_max * entry_bytes + keys_max * (key_bytes + 40UL) + (64UL << 20));
    struct rte_hash_parameters parameters = {
        .name = "flows",
        .entries = keys_max,
        .key_len = table.key_stride * sizeof(uint64_t),
        .hash_func = rte_hash_crc,
        .hash_func_init_val = HASH_SEED,
        .socket_id = socket,
        .extra_flag = RTE_HASH_EXTRA_FLAGS_RW_CONCURRENCY_LF,
    };
    table.hash = rte_hash_create(&parameters);
    if (table.hash == NULL)
        give_up("rte_hash_create", rte_errno);
    table.entries = rte_zmalloc_socket("entries", table.entries_max * entry_bytes, 64, socket);
    if (table.entries == NULL)
        give_up("rte_zmalloc_socket", rte_errno);
    if (!table.two_keys)
        return;
    table.unused = rte_malloc_socket("unused", flows * sizeof(uint32_t), 64, socket);
    if (table.unused == NULL)
        give_up("rte_malloc_socket", rte_errno);
    while (table.unused_count < flows) {
        table.unused[table.unused_count] = flows - 1 - table.unused_count;
        table.unused_count++;
    }
}

static inline uint64_t *entry_of(uint32_t number) {
    return table.entries + (size_t)number * table.at.words;
}

static inline void ask_for(uint32_t number) {
    const uint64_t *entry = entry_of(number);
    rte_prefetch0(entry);
    if (table.at.words > 8)
        rte_prefetch0(entry + 8);
}

/* What is hashed is the key without its padding; the length is a constant in each branch. */
static inline hash_sig_t hash_of(const uint64_t *key) {
    if (table.key_words == 2)
        return rte_hash_crc(key, 16, HASH_SEED);
    return rte_hash_crc(key, 40, HASH_SEED);
}

struct burst {
    const void *keys[BURST];
    hash_sig_t hashes[BURST];
    uint32_t entries[BURST];
    uint64_t hits; /* a bit for each key that was found */
};

static inline void find(struct burst *burst, const uint64_t *keys, uint32_t count) {
    for (uint32_t i = 0; i < count; i++) {
        burst->keys[i] = keys + (size_t)i * table.key_stride;
        burst->hashes[i] = hash_of(burst->keys[i]);
    }
    burst->hits = 0;
    if (table.two_keys) {
        void *data[BURST];
        rte_hash_lookup_with_hash_bulk_data(table.hash, burst->keys, burst->hashes, count,
                                            &burst->hits, data);
        for (uint32_t i = 0; i < count; i++)
            burst->entries[i] = (uint32_t)(uintptr_t)data[i];
    } else {
        int32_t positions[BURST];
        rte_hash_lookup_with_hash_bulk(table.hash, burst->keys, burst->hashes, count, positions);
        for (uint32_t i = 0; i < count; i++) {
            burst->entries[i] = (uint32_t)positions[i];
            burst->hits |= (uint64_t)(positions[i] >= 0) << i;
        }
    }
    for (uint32_t i = 0; i < count; i++)
        if (burst->hits >> i & 1)
            ask_for(burst->entries[i]);
}

static inline void update(uint64_t *entry, uint64_t now) {
    __atomic_store_n(&entry[table.at.deadline], now, __ATOMIC_RELAXED);
    uint64_t packets = __atomic_load_n(&entry[table.at.packets], __ATOMIC_RELAXED);
    __atomic_store_n(&entry[table.at.packets], packets + 1, __ATOMIC_RELAXED);
    uint64_t bytes = __atomic_load_n(&entry[table.at.bytes], __ATOMIC_RELAXED);
    __atomic_store_n(&entry[table.at.bytes], bytes + FRAME_BYTES, __ATOMIC_RELAXED);
}

static void look_up(const uint64_t *keys, uint32_t count, uint64_t now, struct reply *reply) {
    for (uint32_t done = 0; done < count; done += BURST) {
        struct burst burst;
        uint32_t size = RTE_MIN((uint32_t)BURST, count - done);
        find(&burst, keys + (size_t)done * table.key_stride, size);
        for (uint32_t i = 0; i < size; i++) {
            if (!(burst.hits >> i & 1))
                continue;
            uint64_t *entry = entry_of(burst.entries[i]);
            reply->state_sum += entry[table.at.state];
            reply->found++;
            update(entry, now);
        }
    }
}

/* As look_up, changing nothing. */
static void audit(uint32_t count, struct reply *reply) {
    for (uint32_t done = 0; done < count; done += BURST) {
        struct burst burst;
        uint32_t size = RTE_MIN((uint32_t)BURST, count - done);
        find(&burst, table.keys + (size_t)done * table.key_stride, size);
        for (uint32_t i = 0; i < size; i++) {
            if (!(burst.hits >> i & 1))
                continue;
            const uint64_t *entry = entry_of(burst.entries[i]);
            reply->found++;
            reply->state_sum += entry[table.at.state];
            reply->packets_sum += entry[table.at.packets];
        }
    }
}

static int add_alias(const uint64_t *alias, uint32_t number) {
    uint64_t padded[KEY_WORDS_MAX] = {0};
    memcpy(padded, alias, table.key_words * sizeof *alias);
    void *data = (void *)(uintptr_t)number;
    return rte_hash_add_key_with_hash_data(table.hash, padded, hash_of(padded), data);
}

/* The number of the new entry, or a negative errno. */
static int64_t add(const uint64_t *key, const uint64_t *alias) {
    if (!table.two_keys)
        return rte_hash_add_key_with_hash(table.hash, key, hash_of(key));
    if (table.unused_count == 0)
        return -ENOSPC;
    uint32_t number = table.unused[--table.unused_count];
    void *data = (void *)(uintptr_t)number;
    int failed = rte_hash_add_key_with_hash_data(table.hash, key, hash_of(key), data);
    if (failed == 0)
        failed = add_alias(alias, number);
    return failed < 0 ? failed : (int64_t)number;
}

static void insert(uint32_t count, uint64_t now, struct reply *reply) {
    uint32_t rest_words = table.key_words + 1;
    for (uint32_t done = 0; done < count; done += BURST) {
        uint32_t size = RTE_MIN((uint32_t)BURST, count - done);
        uint32_t numbers[BURST];
        for (uint32_t i = 0; i < size; i++) {
            const uint64_t *key = table.keys + (size_t)(done + i) * table.key_stride;
            int64_t number = add(key, table.rest + (size_t)(done + i) * rest_words);
            if (number < 0) {
                reply->failed = (uint64_t)-number;
                return;
            }
            numbers[i] = (uint32_t)number;
            ask_for(numbers[i]);
        }
        for (uint32_t i = 0; i < size; i++) {
            const uint64_t *key = table.keys + (size_t)(done + i) * table.key_stride;
            const uint64_t *rest = table.rest + (size_t)(done + i) * rest_words;
            uint64_t *entry = entry_of(numbers[i]);
            memcpy(entry, key, table.key_words * sizeof *key);
            memcpy(entry + table.key_words, rest, table.key_words * sizeof *rest);
            entry[table.at.state] = rest[table.key_words];
            entry[table.at.packets] = 0;
            entry[table.at.bytes] = 0;
            entry[table.at.deadline] = now;
            reply->found++;
        }
    }
}

static bool remove_alias(const uint64_t *entry) {
    uint64_t padded[KEY_WORDS_MAX] = {0};
    memcpy(padded, entry + table.key_words, table.key_words * sizeof *entry);
    int32_t position = rte_hash_del_key_with_hash(table.hash, padded, hash_of(padded));
    return position >= 0 && rte_hash_free_key_with_position(table.hash, position) == 0;
}

/* Positions are freed at once: in this run nobody reads meanwhile. Whoever has readers must wait for
 * them first, by rte_rcu_qsbr or otherwise, which costs more. */
static void remove_flows(uint32_t count, struct reply *reply) {
    for (uint32_t done = 0; done < count; done += BURST) {
        struct burst burst;
        uint32_t size = RTE_MIN((uint32_t)BURST, count - done);
        find(&burst, table.keys + (size_t)done * table.key_stride, size);
        for (uint32_t i = 0; i < size; i++) {
            if (!(burst.hits >> i & 1))
                continue;
            uint64_t *entry = entry_of(burst.entries[i]);
            int32_t position =
                rte_hash_del_key_with_hash(table.hash, burst.keys[i], burst.hashes[i]);
            if (position < 0 || rte_hash_free_key_with_position(table.hash, position) != 0)
                continue;
            if (table.two_keys) {
                if (!remove_alias(entry))
                    continue;
                table.unused[table.unused_count++] = burst.entries[i];
            }
            entry[table.at.deadline] = 0;
            reply->found++;
        }
    }
}

static void sweep(uint64_t now, struct reply *reply) {
    for (uint32_t number = 0; number < table.entries_max; number++) {
        const uint64_t *entry = entry_of(number);
        if (entry[table.at.deadline] < now)
            continue;
        reply->found++;
        reply->state_sum += entry[table.at.state];
    }
}

struct worker {
    pthread_t thread;
    pthread_barrier_t *barrier;
    uint32_t number, count;
    uint64_t now, started, ended;
    struct reply reply;
};

static int pin(int cpu) {
    cpu_set_t set;
    CPU_ZERO(&set);
    CPU_SET(cpu, &set);
    return sched_setaffinity(0, sizeof set, &set);
}

static void *share_one(void *argument) {
    struct worker *worker = argument;
    worker->reply.failed = pin(table.cpus[worker->number]) == 0 ? 0 : (uint64_t)errno;
    const uint64_t *keys = table.keys + (size_t)worker->number * worker->count * table.key_stride;
    pthread_barrier_wait(worker->barrier);
    worker->started = nanoseconds_of(CLOCK_MONOTONIC);
    look_up(keys, worker->count, worker->now, &worker->reply);
    worker->ended = nanoseconds_of(CLOCK_MONOTONIC);
    return NULL;
}

static void share(uint32_t count, uint64_t now, struct reply *reply) {
    pthread_barrier_t barrier;
    struct worker workers[WORKERS] = {0};
    pthread_barrier_init(&barrier, NULL, WORKERS);
    for (uint32_t i = 0; i < WORKERS; i++) {
        struct worker *worker = &workers[i];
        *worker = (struct worker){.barrier = &barrier, .number = i, .count = count, .now = now};
        int failed = pthread_create(&worker->thread, NULL, share_one, worker);
        if (failed != 0)
            give_up("pthread_create", failed);
    }
    uint64_t started = UINT64_MAX, ended = 0;
    for (uint32_t i = 0; i < WORKERS; i++) {
        pthread_join(workers[i].thread, NULL);
        started = RTE_MIN(started, workers[i].started);
        ended = RTE_MAX(ended, workers[i].ended);
        reply->failed |= workers[i].reply.failed;
        reply->found += workers[i].reply.found;
        reply->state_sum += workers[i].reply.state_sum;
    }
    reply->nanoseconds = ended - started;
    pthread_barrier_destroy(&barrier);
}

/* Reads the records that follow a request. */
static bool receive(const struct request *request) {
    size_t count = request->count;
    if (request->command == SWEEP)
        return true;
    if (request->command == SHARE)
        count *= WORKERS;
    uint32_t rest_words = request->command == INSERT ? table.key_words + 1 : 0;
    if (count > table.records_max) {
        table.keys = realloc(table.keys, count * table.key_stride * sizeof(uint64_t));
        table.rest = realloc(table.rest, count * (table.key_words + 1) * sizeof(uint64_t));
        if (table.keys == NULL || table.rest == NULL)
            give_up("memory for a request", ENOMEM);
        table.records_max = count;
    }
    for (size_t i = 0; i < count; i++) {
        uint64_t record[2 * KEY_WORDS_MAX + 1];
        size_t words = table.key_words + rest_words;
        if (!read_all(record, words * sizeof *record))
            return false;
        uint64_t *key = table.keys + i * table.key_stride;
        memset(key, 0, table.key_stride * sizeof *key);
        memcpy(key, record, table.key_words * sizeof *key);
        uint64_t *rest = table.rest + i * rest_words;
        memcpy(rest, record + table.key_words, rest_words * sizeof *rest);
    }
    return true;
}

static void serve(const struct request *request, struct reply *reply) {
    uint64_t started = nanoseconds_of(CLOCK_THREAD_CPUTIME_ID);
    switch (request->command) {
    case INSERT: insert(request->count, request->now, reply); break;
    case LOOK_UP: look_up(table.keys, request->count, request->now, reply); break;
    case SHARE: share(request->count, request->now, reply); return;
    case REMOVE: remove_flows(request->count, reply); break;
    case SWEEP: sweep(request->now, reply); break;
    case AUDIT: audit(request->count, reply); break;
    default: reply->failed = ENOSYS;
    }
    reply->nanoseconds = nanoseconds_of(CLOCK_THREAD_CPUTIME_ID) - started;
}

int main(int argc, char **argv) {
    if (argc != 6) {
        fprintf(stderr, "usage: %s CPU OTHER_CPU FLOWS KEY_WORDS KEYS\n", argv[0]);
        return 64;
    }
    table.cpus[0] = atoi(argv[1]);
    table.cpus[1] = atoi(argv[2]);
    uint32_t flows = (uint32_t)strtoul(argv[3], NULL, 10);
    table.key_words = (uint32_t)strtoul(argv[4], NULL, 10);
    table.two_keys = strcmp(argv[5], "2") == 0;
    bool is_v4 = table.key_words == 2;
    table.key_stride = is_v4 ? 2 : KEY_WORDS_MAX;
    uint32_t after = 2 * table.key_words;
    table.at = (struct place){after, after + 1, after + 2, after + 3, is_v4 ? 8 : 16};

    char cores[32];
    snprintf(cores, sizeof cores, "--lcores=0@%d", table.cpus[0]);
    char *arguments[] = {argv[0],     cores,      "--no-huge",      "-m",           "64",
                         "--no-pci", "--no-shconf", "--no-telemetry", "--log-level=4", NULL};
    if (rte_eal_init(RTE_DIM(arguments) - 1, arguments) < 0)
        give_up("rte_eal_init", rte_errno);
    make_table(flows);

    /* The first answer says that all is ready, and how much memory of the heap is in use. */
    struct rte_malloc_socket_stats heap = {0};
    rte_malloc_get_socket_stats(rte_malloc_heap_get_socket(HEAP), &heap);
    struct reply ready = {.found = heap.heap_allocsz_bytes};
    if (!answer(&ready))
        return 1;
    struct request request;
    while (read_all(&request, sizeof request) && receive(&request)) {
        struct reply reply = {0};
        serve(&request, &reply);
        if (!answer(&reply))
            return 1;
    }
    rte_eal_cleanup();
    return 0;
}
