/* What the parser needs to know of filters and tests: whether a name exists. */
#ifndef HR_TEXT_JINJA_LIBRARY_H
#define HR_TEXT_JINJA_LIBRARY_H

#include "text/jinja_ast.h"

/* NULL for a name outside the subset. */
const hr_jinja_filter *hr_jinja_find_filter(const char *name);
const hr_jinja_test *hr_jinja_find_test(const char *name);

#endif
