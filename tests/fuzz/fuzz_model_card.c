/* Heads of model cards, and the names in them: any bytes give an object of texts and lists of texts, and any text has
 * parts that fit their places. */
#include "convert/model_card.h"
#include "convert/model_id.h"

#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t len);

static void read_name(const json_t *value)
{
    const char *text = json_string_value(value);
    char title[HR_MODEL_ID_MAX];
    hr_model_id id;

    if (!text)
        __builtin_trap();
    if (hr_model_id_parse(text, 1200000000, &id, NULL) != HEADRACE_OK)
        return;
    hr_model_id_title(id.name, title);
    if (strlen(title) >= sizeof title || strlen(id.basename) >= sizeof id.basename)
        __builtin_trap();
}

int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t len)
{
    json_t *card = hr_model_card_parse((const char *)bytes, len), *value, *item;
    const char *key;
    size_t i;

    if (!card)
        __builtin_trap();
    json_object_foreach(card, key, value)
    {
        if (json_is_string(value))
            read_name(value);
        json_array_foreach(value, i, item) read_name(item);
    }
    json_decref(card);
    return 0;
}
