/* Proof that a table of kernels runs on this CPU and computes what the plain table computes. */
#ifndef HR_BACKEND_CPU_CPU_SELF_TEST_H
#define HR_BACKEND_CPU_CPU_SELF_TEST_H

#include "backend/cpu/cpu_kernels.h"

/* Runs every function of the table on small data under a guard against SIGILL and compares with hr_cpu_kernels_plain.
 * On false, *why is a static text that names the function. Milliseconds; replaces the process's SIGILL handler
 * meanwhile, so one caller at a time (cpu_select.c sees to it for the tables of the program). */
bool hr_cpu_self_test(const hr_cpu_kernels *table, const char **why);

#endif
