/* Characters that this system's regex library may class differently from the reference tokenizer. */
#ifndef HR_TEXT_NEW_CHARACTERS_H
#define HR_TEXT_NEW_CHARACTERS_H

#include "base/buffer.h"

/* If text (valid UTF-8) holds such characters, writes a copy to out in which each is replaced by an old character of
 * the same class and byte length and returns true; else leaves out alone and returns false. For finding borders only.
 */
bool hr_replace_new_characters(const char *text, size_t len, hr_buffer *out);

#endif
