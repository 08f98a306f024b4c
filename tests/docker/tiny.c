/* A server that is small enough for a test: what it does is its first argument.
 *
 *   serve           answers every HTTP request on port 8888 with 200; ends with 0 at SIGTERM
 *   stubborn        the same, but SIGTERM does not impress it
 *   exit CODE       ends at once
 *   eat MIB         takes so much memory, touches all of it, then serves
 *   fork COUNT      has so many children that do nothing, then serves
 *   env             prints its environment, then serves
 *   leave CODE      serves, and ends with this code at SIGTERM
 *   wait            does nothing; ends with 0 at SIGTERM
 *   hungry MIB      serves; takes so much memory when it is asked for a path that ends in /eat
 *   mute            runs, and never listens
 */
#include <netinet/in.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

static int code;
static long hunger;

static void leave(int signum)
{
    (void)signum;
    _exit(code);
}

static void eat(long mib)
{
    for (long i = 0; i < mib; i++) {
        char *piece = malloc(1 << 20);
        if (piece == NULL)
            _exit(3);
        memset(piece, 1 + i % 255, 1 << 20);
    }
}

static void serve(void)
{
    static const char answer[] = "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n"
                                 "Content-Length: 2\r\nConnection: close\r\n\r\n{}";
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons(8888)};
    int on = 1, listener = socket(AF_INET, SOCK_STREAM, 0);
    char request[4096];

    setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
    if (bind(listener, (struct sockaddr *)&address, sizeof address) || listen(listener, 16)) {
        perror("listen");
        exit(4);
    }
    printf("ready\n");
    fflush(stdout);
    for (;;) {
        int client = accept(listener, NULL, NULL);
        ssize_t length;
        if (client < 0)
            continue;
        length = read(client, request, sizeof request - 1);
        if (length > 0) {
            request[length] = 0;
            if (hunger && strstr(request, "/eat HTTP/"))
                eat(hunger);
            (void)!write(client, answer, sizeof answer - 1);
        }
        close(client);
    }
}

int main(int count, char **words, char **environment)
{
    const char *what = count > 1 ? words[1] : "serve";
    long number = count > 2 ? atol(words[2]) : 0;

    signal(SIGCHLD, SIG_IGN);
    /* As process 1 it has no default action for any signal. */
    signal(SIGTERM, strcmp(what, "stubborn") ? leave : SIG_IGN);
    signal(SIGINT, leave);
    if (!strcmp(what, "exit"))
        return (int)number;
    if (!strcmp(what, "wait"))
        for (;;)
            pause();
    if (!strcmp(what, "leave"))
        code = (int)number;
    if (!strcmp(what, "hungry"))
        hunger = number;
    while (!strcmp(what, "mute"))
        pause();
    if (!strcmp(what, "eat"))
        eat(number);
    if (!strcmp(what, "env"))
        for (char **line = environment; *line; line++)
            puts(*line);
    for (long i = 0; !strcmp(what, "fork") && i < number; i++)
        if (fork() == 0)
            for (;;)
                pause();
    serve();
}
