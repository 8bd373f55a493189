/* Preloaded into a server, this library records what is on stable storage: the length of every synced file,
 * and the entries of every synced directory. It links files by inode into a separate folder, so that they
 * are found again whatever happens to their names.
 *
 *   POWER_LOSS_ROOT    only files and directories below it count
 *   POWER_LOSS_SHADOW  gets the links, and "record":
 *
 *   F inode length             D inode
 *   .                          d|f inode name
 *                              .
 */
#define _GNU_SOURCE
#include <dirent.h>
#include <dlfcn.h>
#include <fcntl.h>
#include <limits.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

static const char *root, *shadow;
static int record = -1;
/* One sync at a time: a later record never says less than an earlier one. */
static pthread_mutex_t one_at_a_time = PTHREAD_MUTEX_INITIALIZER;

__attribute__((constructor)) static void start(void) {
    char path[PATH_MAX];
    root = getenv("POWER_LOSS_ROOT");
    shadow = getenv("POWER_LOSS_SHADOW");
    if (root == NULL || shadow == NULL) return;
    snprintf(path, sizeof path, "%s/record", shadow);
    record = open(path, O_WRONLY | O_APPEND | O_CREAT | O_CLOEXEC, 0600);
    if (record < 0) abort();
}

static int is_inside(const char *link) {
    char path[PATH_MAX];
    ssize_t length = readlink(link, path, sizeof path - 1);
    if (length < 0) return 0;
    path[length] = 0;
    size_t prefix = strlen(root);
    return strncmp(path, root, prefix) == 0 && (path[prefix] == 0 || path[prefix] == '/');
}

static void list(FILE *lines, int fd, const struct stat *status) {
    fprintf(lines, "D %lu\n", (unsigned long)status->st_ino);
    int again = openat(fd, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    DIR *directory = again < 0 ? NULL : fdopendir(again);
    if (directory == NULL) abort();
    for (struct dirent *entry; (entry = readdir(directory)) != NULL;) {
        if (strcmp(entry->d_name, ".") == 0 || strcmp(entry->d_name, "..") == 0) continue;
        char kind = entry->d_type == DT_DIR ? 'd' : 'f';
        fprintf(lines, "%c %lu %s\n", kind, (unsigned long)entry->d_ino, entry->d_name);
    }
    closedir(directory);
}

static int synced(int fd, const char *name) {
    int (*sync)(int) = (int (*)(int))dlsym(RTLD_NEXT, name);
    char link[64], place[PATH_MAX], *text = NULL;
    size_t bytes = 0;
    struct stat status;
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    if (record < 0 || !is_inside(link)) return sync(fd);

    pthread_mutex_lock(&one_at_a_time);
    /* The call syncs what exists before it; what arrives during the call may not be synced. */
    FILE *lines = open_memstream(&text, &bytes);
    if (lines == NULL || fstat(fd, &status) != 0) abort();
    if (S_ISDIR(status.st_mode)) {
        list(lines, fd, &status);
    } else {
        fprintf(lines, "F %lu %lld\n", (unsigned long)status.st_ino, (long long)status.st_size);
        snprintf(place, sizeof place, "%s/%lu", shadow, (unsigned long)status.st_ino);
        /* The file may be linked already, or have no name any more. */
        (void)!linkat(AT_FDCWD, link, AT_FDCWD, place, AT_SYMLINK_FOLLOW);
    }
    fprintf(lines, ".\n");
    fclose(lines);
    int result = sync(fd);
    if (result == 0 && write(record, text, bytes) != (ssize_t)bytes) abort();
    free(text);
    pthread_mutex_unlock(&one_at_a_time);
    return result;
}

int fsync(int fd) { return synced(fd, "fsync"); }

int fdatasync(int fd) { return synced(fd, "fdatasync"); }
