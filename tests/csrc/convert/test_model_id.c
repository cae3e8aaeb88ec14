/* Names of models and heads of model cards, as the gguf package's metadata reads them (values taken from it). */
#include "convert/model_card.h"
#include "convert/model_id.h"

#include <setjmp.h>
#include <stdarg.h>
#include <string.h>

#include <cmocka.h>

static void check(const char *name, uint64_t n, const char *title, const char *basename, const char *size,
                  const char *finetune, const char *version)
{
    hr_model_id id;
    char text[HR_MODEL_ID_MAX];

    assert_int_equal(hr_model_id_parse(name, n, &id, NULL), HEADRACE_OK);
    hr_model_id_title(id.name, text);
    assert_string_equal(text, title);
    assert_string_equal(id.basename, basename);
    assert_string_equal(id.size_label, size);
    assert_string_equal(id.finetune, finetune);
    assert_string_equal(id.version, version);
}

static void test_parts_of_a_name(void **state)
{
    (void)state;
    check("LFM2-1.2B", 1170340608, "LFM2 1.2B", "LFM2", "1.2B", "", "");
    check("LFM2-8B-A1B", 8339929856, "LFM2 8B A1B", "LFM2", "8B-A1B", "", "");
    check("LFM2.5-1.2B-Instruct", 1170340608, "LFM2.5 1.2B Instruct", "LFM2.5", "1.2B", "Instruct", "");
    check("LFM2-350M-Math", 354483968, "LFM2 350M Math", "LFM2", "350M", "Math", "");
    check("LiquidAI/LFM2-2.6B-Exp", 2569272320, "LFM2 2.6B Exp", "LFM2", "2.6B", "Exp", "");
    check("lfm2-350m-chat-v1.2", 354483968, "Lfm2 350m Chat v1.2", "lfm2", "350M", "chat", "v1.2");
    check("tiny", 9058848, "Tiny", "", "", "", "");
    check("LFM2-1.2B-128k", 1170340608, "LFM2 1.2B 128k", "LFM2", "1.2B", "128k", "");
    check("my model of 7B", 7000000000, "My Model Of 7B", "", "", "", "");
    check("LFM2-1.2B-q4_k_m", 1170340608, "LFM2 1.2B Q4_K_M", "LFM2", "1.2B", "", "");
    check("", 1, "", "", "", "", "");
    check("---", 1, "", "", "", "", "");
}

static void test_organisation(void **state)
{
    hr_model_id id;

    (void)state;
    assert_int_equal(hr_model_id_parse("LiquidAI/LFM2-1.2B", 0, &id, NULL), HEADRACE_OK);
    assert_string_equal(id.organization, "LiquidAI");
    assert_string_equal(id.name, "LFM2-1.2B");
    assert_int_equal(hr_model_id_parse("./LFM2-1.2B", 0, &id, NULL), HEADRACE_OK);
    assert_string_equal(id.organization, "");
}

static void test_sizes(void **state)
{
    static const struct {
        uint64_t n;
        const char *text;
    } rows[] = {{354483968, "354M"},   {1170340608, "1.2B"}, {8339929856, "8.3B"},  {9058848, "9.1M"}, {123456, "123K"},
                {12345678901u, "12B"}, {999, "1.0K"},        {1000000000, "1000M"}, {420, "0.42K"}};
    char text[32];

    (void)state;
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        hr_model_size_text(rows[i].n, text);
        assert_string_equal(text, rows[i].text);
    }
}

static void check_card(const char *text, const char *expected)
{
    json_t *card = hr_model_card_parse(text, strlen(text)), *wanted = json_loads(expected, 0, NULL);

    assert_non_null(wanted);
    if (!json_equal(card, wanted)) {
        char *found = json_dumps(card, JSON_SORT_KEYS);

        fail_msg("%s instead of %s", found, expected);
    }
    json_decref(card);
    json_decref(wanted);
}

static void test_heads_of_cards(void **state)
{
    (void)state;
    check_card("# no head\nlicense: other\n", "{}");
    check_card("", "{}");
    check_card("---\nlicense: other\nlicense_name: lfm1.0 # note\nlicense_link: \"LICENSE\"\n---\ntags: x\n",
               "{\"license\": \"other\", \"license_name\": \"lfm1.0\", \"license_link\": \"LICENSE\"}");
    check_card(
        "---\r\nlanguage:\r\n- en\r\n- ar\r\ntags:\r\n  - liquid\r\n  - 'edge'\r\npipeline_tag: text-generation\r\n---",
        "{\"language\": [\"en\", \"ar\"], \"tags\": [\"liquid\", \"edge\"], \"pipeline_tag\": \"text-generation\"}");
    check_card("---\ntags: [a, \"b c\", d]\nbase_model: LiquidAI/LFM2-1.2B\n---\n",
               "{\"tags\": [\"a\", \"b c\", \"d\"], \"base_model\": \"LiquidAI/LFM2-1.2B\"}");
    check_card("---\nmodel-index:\n- name: x\n  results:\n    - task: y\nlicense: mit\nempty:\nblock: |\n  text\n  "
               "more: of it\nlast: 1\n",
               "{\"license\": \"mit\", \"last\": \"1\"}");
}

static void test_a_card_that_is_no_text(void **state)
{
    (void)state;
    check_card("---\n\xFF\xFE: x\nlicense: \xC3\nname: good\n---\n", "{\"name\": \"good\"}");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_parts_of_a_name),
        cmocka_unit_test(test_organisation),
        cmocka_unit_test(test_sizes),
        cmocka_unit_test(test_heads_of_cards),
        cmocka_unit_test(test_a_card_that_is_no_text),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
