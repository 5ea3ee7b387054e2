/* The number of this process, without a system call: each use of a handle asks for it, and in a
 * domain 0 system calls are dear.  A forked child learns its own before anything else runs in it.
 */
#ifndef XENPM_OWN_PID_H
#define XENPM_OWN_PID_H

#include <pthread.h>
#include <unistd.h>

static pid_t xenpm_own_pid;

static void xenpm_learn_own_pid(void)
{
    xenpm_own_pid = getpid();
}

__attribute__((constructor)) static void xenpm_watch_forks(void)
{
    xenpm_learn_own_pid();
    pthread_atfork(NULL, NULL, xenpm_learn_own_pid);
}

#endif
