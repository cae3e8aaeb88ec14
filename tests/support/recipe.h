/* Golden checkpoints whose weights are a recipe instead of a file, and files that tests make for themselves.
 *
 * recipe.py (tests/data/goldens) states how every value follows from a seed and the tensor's name. This is the same in
 * C, so that a test needs no Python: it writes the same bytes, which test_recipe.c compares with a stored checkpoint.
 */
#ifndef HR_TESTS_SUPPORT_RECIPE_H
#define HR_TESTS_SUPPORT_RECIPE_H

#include <stdbool.h>
#include <stddef.h>

/* Writes config.json and model.safetensors of a case folder ("…/goldens/moe_64x4") into out, which is made if need be.
 * Returns false and prints why on failure. */
bool hr_test_materialize(const char *case_folder, const char *out_folder);

/* A new empty folder under the system's temporary one; path holds at least 128 bytes. Aborts on failure. */
void hr_test_make_folder(char *path, size_t capacity);
/* Removes the files of a folder made by hr_test_make_folder, and the folder. Does not descend. */
void hr_test_remove_folder(const char *path);
/* Writes a whole file. Aborts on failure. */
void hr_test_write_file(const char *folder, const char *name, const void *bytes, size_t len);
/* Reads a whole file into heap memory, terminated. Aborts on failure. */
char *hr_test_read_file(const char *path, size_t *len);

#endif
