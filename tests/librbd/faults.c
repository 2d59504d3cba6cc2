/*
 * Shows the faults of librbd that the driver works around, with librbd alone: no line of the driver runs.
 *
 *   faults NAME [THREADS]    prints "NAME: fault, …" or "NAME: none, …"; without NAME it lists
 *                            the names. librados runs callbacks on that many THREADS
 *
 * It makes images in the pool rbd of the cluster in CEPH_CONF, whose keyring is beside that file, and removes them.
 * A fault that hangs or aborts is tried in a process of its own. tests/librbd.sh runs it on each release.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <malloc.h>
#include <pthread.h>
#include <rados/librados.h>
#include <rbd/librbd.h>
#include <signal.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define OBJECT (UINT64_C(4) << 20)
#define TRIES 5
#define FEATURES 61 /* what the driver gives images: layering to deep-flatten, with an object map */

static void need(int code, const char *call) {
    if (code < 0) {
        fprintf(stderr, "%s: %s\n", call, strerror(-code));
        exit(2);
    }
}

/* How many threads librados runs callbacks on; its default when NULL. */
static const char *callback_threads;

/* An I/O context of the pool, over a connection of its own. */
static rados_ioctx_t connect_with_cache(const char *cache) {
    const char *conf = getenv("CEPH_CONF");
    if (!conf)
        need(-EINVAL, "CEPH_CONF is not set");
    char keyring[4096];
    snprintf(keyring, sizeof keyring, "%.*s/keyring", (int)(strrchr(conf, '/') - conf), conf);
    rados_t cluster;
    rados_ioctx_t pool;
    need(rados_create2(&cluster, "ceph", "client.admin", 0), "rados_create2");
    need(rados_conf_read_file(cluster, conf), "rados_conf_read_file");
    rados_conf_set(cluster, "keyring", keyring);
    rados_conf_set(cluster, "admin_socket", "");
    rados_conf_set(cluster, "log_to_stderr", "false");
    rados_conf_set(cluster, "rbd_cache", cache);
    if (callback_threads)
        need(rados_conf_set(cluster, "librados_thread_count", callback_threads), "librados_thread_count");
    need(rados_connect(cluster), "rados_connect");
    need(rados_ioctx_create(cluster, "rbd", &pool), "rados_ioctx_create");
    return pool;
}

static rados_ioctx_t connect_to_pool(void) { return connect_with_cache("false"); }

static void create_with(rados_ioctx_t pool, const char *name, uint64_t size, uint64_t features) {
    rbd_image_options_t options;
    rbd_image_options_create(&options);
    rbd_image_options_set_uint64(options, RBD_IMAGE_OPTION_FEATURES, features);
    need(rbd_create4(pool, name, size, options), "rbd_create4");
    rbd_image_options_destroy(options);
}

static void create(rados_ioctx_t pool, const char *name, uint64_t size) {
    create_with(pool, name, size, FEATURES);
}

static rbd_image_t open_image(rados_ioctx_t pool, const char *name) {
    rbd_image_t image;
    need(rbd_open(pool, name, &image, NULL), "rbd_open");
    return image;
}

static void put(rbd_image_t image, uint64_t offset, char byte) {
    need((int)rbd_write(image, offset, 1, &byte), "rbd_write");
}

static int get(rbd_image_t image, uint64_t offset) {
    char byte = 0;
    need((int)rbd_read(image, offset, 1, &byte), "rbd_read");
    return byte;
}

/* "parent" with a 7 in its second object, and "clone" of its snapshot "s". */
static void create_family(rados_ioctx_t pool) {
    create(pool, "parent", 8 * OBJECT);
    rbd_image_t parent = open_image(pool, "parent");
    put(parent, OBJECT, 7);
    need(rbd_snap_create(parent, "s"), "rbd_snap_create");
    rbd_close(parent);
    rbd_image_options_t options;
    rbd_image_options_create(&options);
    rbd_image_options_set_uint64(options, RBD_IMAGE_OPTION_CLONE_FORMAT, 2);
    need(rbd_clone3(pool, "parent", "s", pool, "clone", options), "rbd_clone3");
    rbd_image_options_destroy(options);
}

static void remove_family(rados_ioctx_t pool) {
    need(rbd_remove(pool, "clone"), "rbd_remove");
    rbd_image_t parent = open_image(pool, "parent");
    need(rbd_snap_remove(parent, "s"), "rbd_snap_remove");
    rbd_close(parent);
    need(rbd_remove(pool, "parent"), "rbd_remove");
}

static void say(const char *name, bool fault, const char *format, ...) {
    va_list arguments;
    va_start(arguments, format);
    printf("%s: %s, ", name, fault ? "fault" : "none");
    vprintf(format, arguments);
    printf("\n");
    va_end(arguments);
}

/* An object that the object map has and RADOS has not, as a killed write leaves it, is the parent's after a flatten too. */
static void flatten_object_map(const char *name) {
    rados_ioctx_t pool = connect_to_pool();
    create_family(pool);
    rbd_image_t clone = open_image(pool, "clone");
    put(clone, OBJECT, 8);
    char id[64], object[128];
    need(rbd_get_id(clone, id, sizeof id), "rbd_get_id");
    snprintf(object, sizeof object, "rbd_data.%s.%016x", id, 1);
    need(rados_remove(pool, object), "rados_remove");
    rbd_close(clone);
    clone = open_image(pool, "clone");
    int before = get(clone, OBJECT);
    need(rbd_flatten(clone), "rbd_flatten");
    int after = get(clone, OBJECT);
    rbd_close(clone);
    remove_family(pool);
    say(name, after != before, "the byte was %d before the flatten and is %d after it", before, after);
}

/* A copy of a clone has what the clone reads from its parent. */
static void copy_of_clone(const char *name) {
    rados_ioctx_t pool = connect_to_pool();
    int found[2];
    for (int at_snapshot = 0; at_snapshot < 2; at_snapshot++) {
        create_family(pool);
        rbd_image_t clone = open_image(pool, "clone");
        put(clone, 0, 8); /* takes the lock, and so loads the object map */
        if (at_snapshot) {
            need(rbd_snap_create(clone, "x"), "rbd_snap_create");
            need(rbd_snap_set(clone, "x"), "rbd_snap_set");
        }
        rbd_image_options_t options;
        rbd_image_options_create(&options);
        need(rbd_copy3(clone, pool, "copy", options), "rbd_copy3");
        rbd_image_options_destroy(options);
        rbd_image_t copy = open_image(pool, "copy");
        found[at_snapshot] = get(copy, OBJECT);
        rbd_close(copy);
        need(rbd_remove(pool, "copy"), "rbd_remove");
        if (at_snapshot) {
            rbd_snap_set(clone, NULL);
            need(rbd_snap_remove(clone, "x"), "rbd_snap_remove");
        }
        rbd_close(clone);
        remove_family(pool);
    }
    say(name, found[0] != 7 || found[1] != 7, "the parent's 7 is %d in a copy of the head, %d in one of a snapshot",
        found[0], found[1]);
}

static int refuse(uint64_t done, uint64_t total, void *calls) {
    (void)done, (void)total;
    ++*(int *)calls;
    return -ECANCELED;
}

/* A copy stops when its progress callback asks for that. */
static void copy_stop(const char *name) {
    rados_ioctx_t pool = connect_to_pool();
    create(pool, "image", 8 * OBJECT);
    rbd_image_t image = open_image(pool, "image");
    for (uint64_t object = 0; object < 8; object++)
        put(image, object * OBJECT, 1);
    int calls = 0;
    rbd_image_options_t options;
    rbd_image_options_create(&options);
    int code = rbd_copy_with_progress3(image, pool, "copy", options, refuse, &calls);
    rbd_image_options_destroy(options);
    rbd_close(image);
    if (code == 0)
        need(rbd_remove(pool, "copy"), "rbd_remove");
    need(rbd_remove(pool, "image"), "rbd_remove");
    say(name, code == 0, "asked %d times to stop, it answered %d", calls, code);
}

/* A write beyond the end is refused, or says how little it wrote. */
static void write_past_end(const char *name) {
    rados_ioctx_t pool = connect_to_pool();
    create(pool, "image", OBJECT);
    rbd_image_t image = open_image(pool, "image");
    char bytes[8192] = {1};
    ssize_t code = rbd_write(image, OBJECT - 4096, sizeof bytes, bytes);
    rbd_close(image);
    need(rbd_remove(pool, "image"), "rbd_remove");
    say(name, code >= 0, "8192 bytes written 4096 before the end answered %zd", code);
}

/* An open clone knows when its parent is renamed. */
static void parent_name(const char *name) {
    rados_ioctx_t pool = connect_to_pool();
    create_family(pool);
    rbd_image_t clone = open_image(pool, "clone");
    need(rbd_rename(pool, "parent", "renamed"), "rbd_rename");
    rbd_linked_image_spec_t parent;
    rbd_snap_spec_t snapshot;
    need(rbd_get_parent(clone, &parent, &snapshot), "rbd_get_parent");
    bool stale = strcmp(parent.image_name, "renamed") != 0;
    rbd_linked_image_spec_cleanup(&parent);
    rbd_snap_spec_cleanup(&snapshot);
    rbd_close(clone);
    need(rbd_rename(pool, "renamed", "parent"), "rbd_rename");
    remove_family(pool);
    say(name, stale, "the renamed parent has its %s name", stale ? "old" : "new");
}

/*
 * Runs `act` in a process of its own, for at most `seconds`; the signal that ended it, 0 for none. This process has no
 * connection yet: librados does not live through a fork.
 */
static int apart(void (*act)(void), unsigned seconds) {
    fflush(stdout);
    pid_t child = fork();
    if (child == 0) {
        int nowhere = open("/dev/null", O_WRONLY);
        dup2(nowhere, STDERR_FILENO);
        alarm(seconds);
        act();
        fflush(stdout);
        _exit(0);
    }
    int status;
    waitpid(child, &status, 0);
    return WIFSIGNALED(status) ? WTERMSIG(status) : 0;
}

/* Has clients `act` in a process of their own, for at most `limit` seconds, and says how that ended. */
static void say_who_lived(const char *name, const char *clients, void (*act)(void), unsigned limit) {
    time_t began = time(NULL);
    int signal = apart(act, limit);
    long seconds = (long)(time(NULL) - began);
    say(name, signal != 0, "%s: %s after %ld s", clients, signal ? strsignal(signal) : "all lived", seconds);
}

static void create_image(void) { create(connect_to_pool(), "image", OBJECT); }

static int visit(uint64_t offset, size_t length, int exists, void *argument) {
    (void)offset, (void)length, (void)exists, (void)argument;
    return 0;
}

static void diff_to_infinity(void) {
    rados_ioctx_t pool = connect_to_pool();
    rbd_image_t image;
    need(rbd_open_read_only(pool, "image", &image, NULL), "rbd_open_read_only");
    rbd_diff_iterate2(image, NULL, 4096, UINT64_MAX, 0, 0, visit, NULL);
}

/* A difference whose offset and length overflow ends. */
static void diff_overflow(const char *name) {
    apart(create_image, 60);
    int signal = apart(diff_to_infinity, 10);
    need(rbd_remove(connect_to_pool(), "image"), "rbd_remove");
    say(name, signal != 0, signal ? "it does not end in 10 s" : "it ends");
}

struct worker {
    rados_ioctx_t pool;
    int number;
};

static time_t end_of_work;

static void *remove_image(void *pool) { return (void *)(intptr_t)rbd_remove(pool, "image"); }

static void remove_twice(void) {
    rados_ioctx_t pool = connect_to_pool();
    int neither = 0;
    for (int round = 0; round < 100; round++) {
        create(pool, "image", 8 * OBJECT);
        alarm(60);
        pthread_t threads[2];
        bool removed = false;
        for (int i = 0; i < 2; i++)
            pthread_create(&threads[i], NULL, remove_image, pool);
        for (int i = 0; i < 2; i++) {
            void *code;
            pthread_join(threads[i], &code);
            removed |= (intptr_t)code == 0;
        }
        if (!removed) {
            neither++;
            rbd_remove(pool, "image");
        }
    }
    printf("  of 100 pairs of removals, both failed (EBUSY) in %d\n", neither);
}

/* Two removals of one image at the same time both return. */
static void removal_twice(const char *name) {
    int signal = apart(remove_twice, 60);
    if (signal)
        while (rbd_remove(connect_to_pool(), "image") == -EBUSY)
            sleep(1); /* until the watch of the process that hung is gone */
    say(name, signal != 0, signal ? "a removal never returned" : "every removal returned");
}

static void *snapshot_and_close(void *argument) {
    struct worker *worker = argument;
    for (int i = 0; time(NULL) < end_of_work; i++) {
        char snapshot[32];
        snprintf(snapshot, sizeof snapshot, "%d-%d", worker->number, i);
        rbd_image_t image;
        if (rbd_open(worker->pool, "image", &image, NULL) < 0)
            continue;
        rbd_snap_create(image, snapshot);
        rbd_snap_remove(image, snapshot);
        rbd_close(image);
    }
    return NULL;
}

static void *watch_and_close(void *pool);

static void work(int snapshotters, bool watcher) {
    end_of_work = time(NULL) + 30;
    pthread_t threads[5];
    struct worker workers[5];
    for (int i = 0; i < snapshotters; i++) {
        workers[i] = (struct worker){connect_to_pool(), i};
        pthread_create(&threads[i], NULL, snapshot_and_close, &workers[i]);
    }
    if (watcher)
        watch_and_close(connect_to_pool());
    for (int i = 0; i < snapshotters; i++)
        pthread_join(threads[i], NULL);
}

static void snapshots_over_four_connections(void) { work(4, false); }

static void remove_worked_on(rados_ioctx_t pool) {
    /* What a process that aborted leaves open is gone after half a minute. */
    for (int tries = 0; tries < 60; tries++) {
        rbd_image_t image = open_image(pool, "image");
        int count = 0;
        rbd_snap_list(image, NULL, &count);
        rbd_snap_info_t *snapshots = calloc((size_t)count + 1, sizeof *snapshots);
        int found = rbd_snap_list(image, snapshots, &count);
        for (int i = 0; i < found; i++)
            rbd_snap_remove(image, snapshots[i].name);
        rbd_close(image);
        if (rbd_remove(pool, "image") == 0)
            return;
        sleep(1);
    }
}

/* Clients that change one image at the same time, and close it, live. */
static void handles_abort(const char *name) {
    apart(create_image, 60);
    say_who_lived(name, "four clients", snapshots_over_four_connections, 120);
    remove_worked_on(connect_to_pool());
}

static void *open_and_close(void *pool) {
    rbd_image_t image;
    for (int i = 0; i < 1500; i++)
        if (rbd_open_read_only(pool, "clone", &image, NULL) == 0)
            rbd_close(image);
    return NULL;
}

static void *ask_for_clones(void *pool) {
    rbd_image_options_t options;
    rbd_image_options_create(&options);
    rbd_image_options_set_uint64(options, RBD_IMAGE_OPTION_CLONE_FORMAT, 1);
    for (int i = 0; i < 1500; i++)
        rbd_clone3(pool, "parent", "s", pool, "other", options);
    rbd_image_options_destroy(options);
    return NULL;
}

static void over_twelve_connections(void *(*work)(void *)) {
    /* Memory that was freed is overwritten at once. */
    mallopt(M_PERTURB, 165);
    pthread_t workers[12];
    for (int i = 0; i < 12; i++)
        pthread_create(&workers[i], NULL, work, connect_to_pool());
    for (int i = 0; i < 12; i++)
        pthread_join(workers[i], NULL);
}

static void close_clones(void) { over_twelve_connections(open_and_close); }
static void refuse_clones(void) { over_twelve_connections(ask_for_clones); }

static void family(void) { create_family(connect_to_pool()); }

static void closed_parent(const char *name, void (*act)(void)) {
    apart(family, 60);
    say_who_lived(name, "twelve clients", act, 180);
    remove_family(connect_to_pool());
}

/* A clone that is closed soon after it was opened. */
static void clone_closed(const char *name) {
    closed_parent(name, close_clones);
}

/* A clone of format 1 that is refused once its parent is open: the snapshot is not protected. */
static void clone_refused(const char *name) {
    closed_parent(name, refuse_clones);
}

struct watched {
    rbd_image_t image;
    uint64_t handle;
};

static void quiesce(void *argument) {
    struct watched *watched = argument;
    rbd_quiesce_complete(watched->image, watched->handle, 0);
}

static void unquiesce(void *argument) { (void)argument; }

static void *watch_and_close(void *pool) {
    while (time(NULL) < end_of_work) {
        struct watched watched = {0};
        if (rbd_open(pool, "image", &watched.image, NULL) < 0)
            continue;
        if (rbd_quiesce_watch(watched.image, quiesce, unquiesce, &watched, &watched.handle) == 0) {
            usleep(20000);
            rbd_quiesce_unwatch(watched.image, watched.handle);
        }
        rbd_close(watched.image);
    }
    return NULL;
}

static void snapshots_beside_a_watcher(void) { work(1, true); }

/* A client that registers a quiesce hook while another takes snapshots lives. */
static void quiesce_abort(const char *name) {
    apart(create_image, 60);
    say_who_lived(name, "a watcher and a client", snapshots_beside_a_watcher, 120);
    remove_worked_on(connect_to_pool());
}

/* A client tells its address, stands still, goes on, and counts the writes it is told are durable. */
static int write_when_woken(int tell) {
    rados_ioctx_t pool = connect_with_cache("true");
    rbd_image_t image = open_image(pool, "image");
    put(image, 0, 7);
    need(rbd_flush(image), "rbd_flush");
    char *address;
    need(rados_getaddrs(rados_ioctx_get_cluster(pool), &address), "rados_getaddrs");
    need((int)write(tell, address, strlen(address)), "write");
    close(tell);
    raise(SIGSTOP);
    int durable = 0;
    for (int i = 0; i < TRIES; i++) {
        char byte = 8;
        bool written = rbd_write(image, 0, 1, &byte) > 0;
        sleep(1);
        durable += written && rbd_flush(image) == 0;
    }
    return durable;
}

/*
 * With librbd's cache as it is by default, a flush tells of a write that failed after it was
 * acknowledged. The write fails because its client lost its watch, and is on the blocklist; the flush
 * comes when the failure is known.
 */
static void flush_after_error(const char *name) {
    rados_ioctx_t pool = connect_to_pool();
    create_with(pool, "image", OBJECT, RBD_FEATURE_LAYERING);
    int tell[2], status;
    need(pipe(tell), "pipe");
    pid_t client = fork();
    if (client == 0)
        _exit(write_when_woken(tell[1]));
    close(tell[1]);
    char address[256] = {0};
    need((int)read(tell[0], address, sizeof address - 1), "read");
    need(waitpid(client, &status, WUNTRACED), "waitpid");
    sleep(45); /* longer than a watch lasts */
    rados_t cluster = rados_ioctx_get_cluster(pool);
    need(rados_blocklist_add(cluster, address, 600), "rados_blocklist_add");
    need(rados_wait_for_latest_osdmap(cluster), "rados_wait_for_latest_osdmap");
    rbd_image_t image = open_image(pool, "image");
    put(image, 1, 9);
    kill(client, SIGCONT);
    need(waitpid(client, &status, 0), "waitpid");
    int durable = WEXITSTATUS(status), now = get(image, 0);
    rbd_close(image);
    say(name, durable > 0 && now != 8, "%d of %d writes and flushes were told to be done, and %d is there", durable,
        TRIES, now);
    need(rbd_remove(pool, "image"), "rbd_remove");
}

static const struct {
    const char *name;
    void (*show)(const char *);
} faults[] = {
    {"flatten-object-map", flatten_object_map},
    {"copy-of-clone", copy_of_clone},
    {"copy-stop", copy_stop},
    {"write-past-end", write_past_end},
    {"parent-name", parent_name},
    {"diff-overflow", diff_overflow},
    {"flush-after-error", flush_after_error},
    {"removal-twice", removal_twice},
    {"handles-abort", handles_abort},
    {"clone-closed", clone_closed},
    {"clone-refused", clone_refused},
    {"quiesce-abort", quiesce_abort},
};

int main(int count, char **arguments) {
    setvbuf(stdout, NULL, _IOLBF, 0);
    callback_threads = count > 2 ? arguments[2] : NULL;
    for (size_t i = 0; i < sizeof faults / sizeof *faults; i++) {
        if (count < 2)
            printf("%s\n", faults[i].name);
        else if (strcmp(arguments[1], faults[i].name) == 0) {
            faults[i].show(faults[i].name);
            return 0;
        }
    }
    return count < 2 ? 0 : 2;
}
