/* terway CNI plugin in C: what plugin.py does, without the start of an interpreter, which costs a pod more than
 * all the rest. plugin.py says what is read, sent, spooled and answered; tests/unit/test_cni_plugin.py holds both
 * to it. One request a process: memory is static, or left to the end of the process. */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

#define DEFAULT_SOCKET "/run/terway/terway.sock"
#define DEFAULT_SPOOL "/var/lib/terway/spool"
#define TIME_LIMIT 110
#define MAX_INPUT (1 << 20)
#define MAX_ANSWER (8 << 20)
#define MAX_DEPTH 500
#define VERSIONS "[\"0.3.0\", \"0.3.1\", \"0.4.0\", \"1.0.0\", \"1.1.0\"]"
#define DIGITS "0123456789"
#define ALPHANUMERIC DIGITS "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"

__attribute__((used)) static const char MARK[] = "terway CNI plugin: of terway-core"; /* for `terway cni install` */
static const char *version = "\"1.1.0\""; /* as JSON, and more may follow */
static char message[2048], rest[4200]; /* an error; the answer behind its version */

/* JSON, in text that ends with a NUL. Readers return the place behind what they read, NULL if that is wrong. */
static const char *blanks(const char *at) { return at + strspn(at, " \t\r\n"); }
static const char *digits(const char *at) { return strspn(at, DIGITS) ? at + strspn(at, DIGITS) : NULL; }

/* Bytes of the character at `text`; 0 if it is no UTF-8 (RFC 3629: shortest form, no surrogates). */
static size_t utf8(const char *text) {
    const unsigned char *at = (const unsigned char *)text;
    size_t length = *at < 0x80 ? 1 : *at < 0xe0 ? 2 : *at < 0xf0 ? 3 : 4;
    unsigned least = *at == 0xe0 ? 0xa0 : *at == 0xf0 ? 0x90 : 0x80;
    unsigned most = *at == 0xed ? 0x9f : *at == 0xf4 ? 0x8f : 0xbf;
    if (length > 1 && (*at < 0xc2 || *at > 0xf4 || at[1] < least || at[1] > most)) return 0;
    for (size_t i = 2; i < length; i++)
        if (at[i] >> 6 != 2) return 0;
    return length;
}

static const char *string(const char *at) {
    if (*at != '"') return NULL;
    for (at++; *at != '"';) {
        size_t length = utf8(at);
        if (!length || (unsigned char)*at < 0x20) return NULL;
        if (*at == '\\' && (!at[1] || !strchr("\"\\/bfnrtu", at[1]))) return NULL;
        if (*at == '\\' && at[1] == 'u' && strspn(at + 2, DIGITS "abcdefABCDEF") < 4) return NULL;
        at += *at == '\\' ? 2 : length;
    }
    return at + 1;
}

static const char *number(const char *at) {
    at += *at == '-';
    at = *at == '0' ? at + 1 : digits(at);
    if (at && *at == '.') at = digits(at + 1);
    if (at && (*at == 'e' || *at == 'E')) at = digits(at + 1 + (at[1] == '+' || at[1] == '-'));
    return at;
}

/* A string without quotes and escapes. False: it does not fit, or is not of printable ASCII characters. */
static bool decode(const char *at, char *out, size_t room) {
    for (at++; *at != '"'; at++) {
        unsigned code = (unsigned char)*at;
        if (code == '\\' && *++at == 'u')
            sscanf(at + 1, "%4x", &code), at += 4;
        else if (code == '\\')
            code = strchr("bfnrt", *at) ? 0 : (unsigned char)*at;
        if (code < 0x20 || code > 0x7e || !--room) return false;
        *out++ = (char)code;
    }
    *out = 0;
    return true;
}

/* Where the values of these keys begin goes to `found`; of a repeated key it is the last one. */
enum { VERSION, SOCKET, SPOOL, CODE, KEYS };
static const char *const keys[KEYS] = {"cniVersion", "socket", "spool", "code"};

static const char *value(const char *at, int depth, const char **found) {
    char name[16], close = *at == '{' ? '}' : ']';
    if (*at == '"') return string(at);
    if (!strncmp(at, "true", 4) || !strncmp(at, "null", 4) || !strncmp(at, "false", 5)) return at + 4 + (*at == 'f');
    if (*at != '{' && *at != '[') return number(at);
    if (depth > MAX_DEPTH) return NULL;
    if (*blanks(at + 1) == close) return blanks(at + 1) + 1;
    do {
        const char *key = at = blanks(at + 1);
        if (close == '}' && (!(at = string(key)) || *(at = blanks(at)) != ':')) return NULL;
        const char *start = close == '}' ? blanks(at + 1) : at;
        if (!(at = value(start, depth + 1, NULL))) return NULL;
        for (int i = 0; found && i < KEYS; i++)
            if (decode(key, name, sizeof name) && !strcmp(name, keys[i])) found[i] = start;
        at = blanks(at);
    } while (*at == ',');
    return *at == close ? at + 1 : NULL;
}

static bool is_object(const char *text, size_t length, const char **found) {
    const char *at = blanks(text);
    return *at == '{' && (at = value(at, 0, found)) && blanks(at) == text + length;
}

static bool write_all(int file, const char *data, size_t length) {
    for (ssize_t done; length; data += done, length -= (size_t)done)
        if ((done = write(file, data, length)) < 0) return false;
    return true;
}

/* Print the answer and exit; called by a signal too. */
static _Noreturn void finish(int status) {
    bool told = write_all(1, "{\"cniVersion\": ", 15) && write_all(1, version, (size_t)(string(version) - version));
    _exit(told && write_all(1, rest, strlen(rest)) && !status ? 0 : 1);
}

/* Make an error of `message`, whose text is cut where it is too long. */
static void prepare(int code) {
    char *out = rest + sprintf(rest, ", \"code\": %d, \"msg\": \"", code);
    for (const char *at = message; *at; at++) {
        if (*at == '"' || *at == '\\') *out++ = '\\';
        *out++ = *at >= 0x20 && *at < 0x7f ? *at : '?';
    }
    strcpy(out, "\"}");
}
#define PREPARE(code, ...) (snprintf(message, sizeof message, __VA_ARGS__), prepare(code))
#define FAIL(...) (PREPARE(__VA_ARGS__), finish(1))

/* The absolute path that the network configuration has under the key. */
static const char *path_of(int key, const char **found, const char *fallback) {
    static char paths[KEYS][MAX_INPUT];
    const char *at = found[key];
    if (!at) return fallback;
    if (*at == '"' && decode(at, paths[key], MAX_INPUT) && *paths[key] == '/') return paths[key];
    int length = (int)(value(at, 0, NULL) - at);
    FAIL(7, "'%s' in the network configuration is %.*s; it must be an absolute path in ASCII", keys[key], length, at);
}

/* The status of an HTTP response and its body; 0 while there is more to come, -1 if it is none. */
static int parse_reply(char *reply, size_t length, char **body, size_t *size) {
    char *end = memmem(reply, length, "\r\n\r\n", 4);
    if (!end) return 0;
    const char *field = strcasestr(reply, "\r\ncontent-length:"), *first, *last;
    if (!field || field > end || strncmp(reply, "HTTP/1.", 7) || reply[9] == '0' || strspn(reply + 9, DIGITS) < 3) return -1;
    last = digits(first = field + 17 + strspn(field + 17, " \t"));
    if (!last || last - first - (long)strspn(first, "0") > 9 || strncmp(last + strspn(last, " \t"), "\r\n", 2)) return -1;
    *body = end + 4;
    *size = (size_t)atol(first);
    return *size <= length - (size_t)(*body - reply) ? ((reply[9] * 10 + reply[10]) * 10 + reply[11]) - '0' * 111 : 0;
}

/* Let the daemon serve the request, print its answer and exit; or return why there is none. */
static const char *ask(const char *path, const char *request, size_t length, bool is_add) {
    static char reply[MAX_ANSWER + 1], *body;
    static const char *found[KEYS], head[] = "POST /v1/cni HTTP/1.1\r\nHost: terway\r\nConnection: close\r\n"
        "Content-Type: application/octet-stream\r\nContent-Length: %zu\r\n\r\n";
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    if (strlen(path) >= sizeof address.sun_path) return "the path is too long for a socket";
    strcpy(address.sun_path, path);
    int peer = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0), status;
    if (peer < 0 || connect(peer, (struct sockaddr *)&address, sizeof address)) return strerror(errno);
    if (dprintf(peer, head, length) < 0 || !write_all(peer, request, length)) return strerror(errno);
    size_t size = 0, got = 0;
    for (ssize_t more; !(status = parse_reply(reply, got, &body, &size)); got += (size_t)more) {
        if ((more = read(peer, reply + got, MAX_ANSWER - got)) < 0) return strerror(errno);
        if (!more) return got < MAX_ANSWER ? "it closed the connection without an answer" : "its answer has no end";
    }
    if (status < 0) return "it does not answer as a terway daemon";
    body[size] = 0;
    bool is_answer = is_object(body, size, found) && (status == 200 || found[CODE]);
    if (!is_answer && (status != 200 || size || is_add)) return "its answer is neither a result nor a CNI error";
    alarm(0);
    close(peer); /* it has the number of standard output where that was closed */
    _exit(write_all(1, body, size) && status == 200 ? 0 : 1);
}

/* Refuse a DEL that names no attachment (SPEC.md, "Parameters"): nobody could ever carry it out. */
static void check_attachment(const char *id, const char *name) {
    bool good_id = strspn(id, ALPHANUMERIC) && !id[strspn(id, ALPHANUMERIC "_.-")];
    bool good_name = *name && strlen(name) < 16 && !strpbrk(name, " \t\n\v\f\r/:");
    good_name = good_name && strcmp(name, ".") && strcmp(name, "..");
    if (good_id && good_name) return;
    FAIL(4, "missing or malformed:%s%s", good_id ? "" : " CNI_CONTAINERID", good_name ? "" : " CNI_IFNAME");
}

/* Leave a DEL for the daemon to find, on disk before this returns. */
static void spool(const char *folder, const char *request, size_t length) {
    static char path[MAX_INPUT + 64], final[sizeof path];
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    long long stamp = now.tv_sec * 1000000000LL + now.tv_nsec;
    char *suffix = path + sprintf(path, "%s/%020lld-%d.tmp", folder, stamp, getpid()) - 3;
    memcpy(mempcpy(final, path, (size_t)(suffix - path)), "del", 3);
    for (char *slash = path; (slash = strchr(slash + 1, '/')); *slash = '/')
        *slash = 0, mkdir(path, strchr(slash + 1, '/') ? 0777 : 0700);
    int file = open(path, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0600), directory = -1;
    bool named = file >= 0 && write_all(file, request, length) && !fsync(file) && !rename(path, final);
    bool kept = named && (directory = open(folder, O_RDONLY | O_CLOEXEC)) >= 0 && !fsync(directory);
    const char *reason = strerror(errno);
    if (file >= 0 && !named) unlink(path);
    if (!kept) FAIL(5, "the terway daemon is away and the DEL cannot be left for it in %s: %s", folder, reason);
}

static int in_order(const void *a, const void *b) { return strcmp(*(char *const *)a, *(char *const *)b); }

int main(void) {
    static char input[MAX_INPUT + 2], *request;
    static const char *found[KEYS];
    size_t length = 0, count = 0, size;
    signal(SIGPIPE, SIG_IGN), signal(SIGXFSZ, SIG_IGN); /* a failing write() says so */
    for (ssize_t more = 1; more; length += (size_t)more)
        if ((more = read(0, input + length, MAX_INPUT + 1 - length)) < 0)
            FAIL(5, "standard input cannot be read: %s", strerror(errno));
    if (length > MAX_INPUT) FAIL(6, "the network configuration on standard input exceeds %d bytes", MAX_INPUT);
    const char *command = getenv("CNI_COMMAND") ?: "";
    bool is_version = !strcmp(command, "VERSION"), is_status = !strcmp(command, "STATUS");
    bool is_del = !strcmp(command, "DEL"), is_add = !strcmp(command, "ADD");
    if ((length || !is_version) && !is_object(input, length, found))
        FAIL(6, "the network configuration on standard input is no JSON object");
    if (found[VERSION] && *found[VERSION] == '"' && found[VERSION][1] != '"') version = found[VERSION];
    if (is_version) strcpy(rest, ", \"supportedVersions\": " VERSIONS "}"), finish(0);
    if (!is_add && !is_del && !is_status && strcmp(command, "CHECK") && strcmp(command, "GC"))
        FAIL(4, "CNI_COMMAND is '%s'; it must be one of ADD, DEL, CHECK, GC, STATUS, VERSION", command);
    const char *path = path_of(SOCKET, found, DEFAULT_SOCKET);
    const char *folder = path_of(SPOOL, found, DEFAULT_SPOOL);
    FILE *stream = open_memstream(&request, &size);
    while (environ[count]) count++;
    qsort(environ, count, sizeof *environ, in_order);
    for (char **entry = environ; *entry; entry++)
        if (!strncmp(*entry, "CNI_", 4)) fwrite(*entry, 1, strlen(*entry) + 1, stream);
    fputc(0, stream);
    fwrite(input, 1, length, stream);
    if (!stream || fclose(stream)) FAIL(999, "the terway CNI plugin has no memory");
    int code = is_status ? 50 : 11;
    PREPARE(code, "the terway daemon at %s gave no answer in %d s; see its log and 'terway status'", path, TIME_LIMIT);
    signal(SIGALRM, finish);
    alarm(TIME_LIMIT);
    const char *problem = ask(path, request, size, is_add);
    alarm(0);
    const char *remedy = "start it ('terway daemon') or see what 'terway doctor' says; the request can be made again";
    if (!is_del) FAIL(code, "the terway daemon is not reachable at %s: %s; %s", path, problem, remedy);
    check_attachment(getenv("CNI_CONTAINERID") ?: "", getenv("CNI_IFNAME") ?: "");
    spool(folder, request, size);
}
