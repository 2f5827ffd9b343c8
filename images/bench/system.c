/* System calls and processes. */
#include <stdio.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include "bench.h"

/* The checksum says how many calls gave the same number. */
static uint64_t run_getpid(uint64_t count)
{
    long first = syscall(SYS_getpid);
    uint64_t same = 0;
    for (uint64_t i = 0; i < count; i++)
        same += syscall(SYS_getpid) == first;
    return same;
}

static pid_t fork_or_die(void)
{
    pid_t child = fork();
    if (child < 0)
        die("fork");
    return child;
}

static int exit_code(pid_t child)
{
    int status;
    if (waitpid(child, &status, 0) != child || !WIFEXITED(status))
        die("waitpid");
    return WEXITSTATUS(status);
}

/* A byte goes to another process, which adds 1 and sends it back. */
static uint64_t run_pipe(uint64_t count)
{
    int there[2], back[2];
    uint8_t byte = 0;
    if (pipe(there) || pipe(back))
        die("pipe");
    pid_t child = fork_or_die();
    if (child == 0) {
        close(there[1]);
        while (read(there[0], &byte, 1) == 1) {
            byte++;
            if (write(back[1], &byte, 1) != 1)
                _exit(1);
        }
        _exit(0);
    }
    uint64_t sum = 0;
    for (uint64_t i = 0; i < count; i++) {
        if (write(there[1], &byte, 1) != 1 || read(back[0], &byte, 1) != 1)
            die("pipe");
        sum += byte;
    }
    close(there[1]);
    return sum + exit_code(child);
}

static uint64_t run_fork(uint64_t count)
{
    uint64_t sum = 0;
    for (uint64_t i = 0; i < count; i++) {
        pid_t child = fork_or_die();
        if (child == 0)
            _exit(i & 127);
        sum += exit_code(child);
    }
    return sum;
}

static uint64_t run_exec(uint64_t count)
{
    uint64_t sum = 0;
    for (uint64_t i = 0; i < count; i++) {
        char code[4];
        snprintf(code, sizeof code, "%d", (int)(i & 127));
        pid_t child = fork_or_die();
        if (child == 0) {
            execl("/proc/self/exe", "bench", "exit", code, NULL);
            die("/proc/self/exe");
        }
        sum += exit_code(child);
    }
    return sum;
}

const struct program system_programs[] = {
    { "getpid", "a system call", run_getpid, 1000000 },
    { "pipe", "ping-pong of two processes over pipes", run_pipe, 40000 },
    { "fork", "fork, exit, wait", run_fork, 1000 },
    { "exec", "fork, execve, exit, wait", run_exec, 250 },
    { NULL },
};
