/* What the model says, parted. Every case is fed whole, byte by byte and in random pieces: the parts must be the same.
 */
#include "base/rng.h"
#include "text/chat_output.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#define START "<|tool_call_start|>"
#define END "<|tool_call_end|>"

/* All parts as one line: reasoning | content | name(arguments) ... */
static char *describe(const char *text, bool in_reasoning, uint64_t cut)
{
    hr_chat_output output;
    hr_buffer reasoning = {0}, content = {0}, out = {0};
    size_t len = strlen(text);

    hr_chat_output_init(&output, true, true, in_reasoning, 7);
    for (size_t at = 0, n; at < len; at += n) {
        n = cut == 0 ? len : cut == 1 ? 1 : 1 + hr_rng_at(cut, at) % 9;
        if (n > len - at)
            n = len - at;
        hr_chat_output_add(&output, text + at, n);
        hr_buffer_add(&reasoning, output.reasoning.at, output.reasoning.len);
        hr_buffer_add(&content, output.content.at, output.content.len);
        hr_chat_output_taken(&output);
        assert_int_equal(output.n_calls_taken, output.n_calls);
    }
    hr_chat_output_finish(&output);
    assert_false(output.failed);
    hr_buffer_add(&reasoning, output.reasoning.at, output.reasoning.len);
    hr_buffer_add(&content, output.content.at, output.content.len);
    hr_buffer_printf(&out, "%s|%s", reasoning.at ? reasoning.at : "", content.at ? content.at : "");
    for (size_t i = 0; i < output.n_calls; i++)
        hr_buffer_printf(&out, "|%s %s", output.calls[i].name, output.calls[i].arguments);
    hr_buffer_deinit(&reasoning);
    hr_buffer_deinit(&content);
    hr_chat_output_deinit(&output);
    return hr_buffer_take(&out, NULL);
}

static void expect(const char *text, bool in_reasoning, const char *wanted)
{
    for (uint64_t cut = 0; cut < 12; cut++) {
        char *parts = describe(text, in_reasoning, cut);

        if (strcmp(parts, wanted) != 0)
            fail_msg("cut %d of %s:\n  %s\nwanted\n  %s", (int)cut, text, parts, wanted);
        free(parts);
    }
}

static void reasoning_is_parted_from_the_answer(void **state)
{
    (void)state;
    expect("plain", false, "|plain");
    expect("<think>why</think>\n\nbecause", false, "why|\n\nbecause");
    expect(" \n<think>why</think>b", false, "why|b");
    expect("  plain <think>x</think>", false, "|  plain <think>x</think>");
    expect("<thin air", false, "|<thin air");
    expect("<think>never ends </thin", false, "never ends </thin|");
    expect("why</think>b", true, "why|b");
    expect("<think>a</think><think>b</think>", false, "a|<think>b</think>");
    expect("<think>" START "[f()]" END "</think>x", false, START "[f()]" END "|x");
    expect("  ", false, "|  ");
    expect("<think", false, "|<think");
}

static void calls_are_read_out_of_the_block(void **state)
{
    (void)state;
    expect(START "[get_weather(city=\"Paris\")]" END, false, "||get_weather {\"city\": \"Paris\"}");
    expect("Let me see. \n" START "[f()]" END " \nDone. ", false, "|Let me see.\nDone.|f {}");
    expect(START "[a.b(x=1, y=-2.5, z=[1, 'two', None], w={'k': True, \"l\": ()}), g(s='it\\'s')]" END, false,
           "||a.b {\"x\": 1, \"y\": -2.5, \"z\": [1, \"two\", null], \"w\": {\"k\": true, \"l\": []}}|g {\"s\": "
           "\"it's\"}");
    expect(START "[f(a=true, b=false, c=null, d=.5, e=5., f=1e5, g=+3, h=007, i=1_000)]" END, false,
           "||f {\"a\": true, \"b\": false, \"c\": null, \"d\": 0.5, \"e\": 5.0, \"f\": 1e5, \"g\": 3, \"h\": 7, "
           "\"i\": 1000}");
    expect(START "[f(s='\\u00e9\\n\\x41\\ud83d\\ude00 日本')]" END, false, "||f {\"s\": \"é\\nA😀 日本\"}");
    expect("<think>r</think>" START "[f(a=1)]" END, false, "r||f {\"a\": 1}");
}

static void what_models_get_wrong_is_tolerated(void **state)
{
    (void)state;
    expect(START "[f(s=\"a\nb\")]" END, false, "||f {\"s\": \"a\\nb\"}");
    expect(START "[f(s='it's fine', n=1)]" END, false, "||f {\"s\": \"it's fine\", \"n\": 1}");
    expect(START "[f(s=\"say \"hi\" now\")]" END, false, "||f {\"s\": \"say \\\"hi\\\" now\"}");
    expect(START "[f(from=1, class='x')]" END, false, "||f {\"from\": 1, \"class\": \"x\"}");
    expect(START "f(a=1)" END, false, "||f {\"a\": 1}");
    expect(START "[f(a=1)", false, "||f {\"a\": 1}");
    expect(START "[f('positional'), g(a=1)]" END, false, "||g {\"a\": 1}");
    expect(START "[f(a=1), g(a=oops), h()]" END, false, "||f {\"a\": 1}|h {}");
    expect(START "[f(p='C:\\Users')]" END, false, "||f {\"p\": \"C:\\\\Users\"}");
    expect(START "[f(a=1),]" END, false, "||f {\"a\": 1}");
    expect(START "[f(a=1,)]" END, false, "||f {\"a\": 1}");
    expect(START "[f(a='''x\ny''')]" END, false, "||f {\"a\": \"x\\ny\"}");
}

static void json_calls_are_read_too(void **state)
{
    (void)state;
    expect(START "[{\"name\": \"f\", \"arguments\": {\"a\": [1, null]}}, {\"name\": \"g\"}]" END, false,
           "||f {\"a\": [1, null]}|g {}");
    expect(START "{\"arguments\": \"{\\\"a\\\": 1}\", \"name\": \"f\", \"id\": 3}" END, false, "||f {\"a\": 1}");
}

static void a_block_that_is_no_call_stays_text(void **state)
{
    (void)state;
    expect("a " START "nonsense" END " b", false, "|a " START "nonsense" END " b");
    expect(START "[]" END, false, "|" START "[]" END);
    expect(START "[f(", false, "|" START "[f(");
    expect(START "x" END START "[f()]" END, false, "|" START "x" END "|f {}");
    expect("[link](url) and <|tool", false, "|[link](url) and <|tool");
}

static void repeated_calls_behind_the_block_are_dropped(void **state)
{
    (void)state;
    expect(START "[f(a=1)]" END "[f(a=1)]" END, false, "||f {\"a\": 1}");
    expect(START "[f(a=1)]" END "\n[f(a=1)]" END " ok", false, "|ok|f {\"a\": 1}");
    expect(START "[f()]" END START "[g()]" END, false, "||f {}");
    expect(START "[f()]" END "text" START "[g()]" END "more", false, "|text\nmore|f {}");
    expect("a" START "[f()]" END "[see](x)", false, "|a\n[see](x)|f {}");
    expect(START "[f()]" END " \n ", false, "||f {}");
}

static void without_tools_the_markers_are_text(void **state)
{
    hr_chat_output output;

    (void)state;
    hr_chat_output_init(&output, false, false, false, 1);
    hr_chat_output_add(&output, "<think>a</think> " START "[f()]" END, strlen("<think>a</think> " START "[f()]" END));
    assert_string_equal(output.content.at, "<think>a</think> " START "[f()]" END);
    hr_chat_output_finish(&output);
    hr_chat_output_deinit(&output);
}

static void text_is_held_back_no_longer_than_needed(void **state)
{
    hr_chat_output output;

    (void)state;
    hr_chat_output_init(&output, true, true, false, 1);
    hr_chat_output_add(&output, "Hello", 5);
    assert_string_equal(output.content.at, "Hello");
    hr_chat_output_add(&output, " <|to", 5);
    assert_string_equal(output.content.at, "Hello");
    hr_chat_output_add(&output, "y", 1);
    assert_string_equal(output.content.at, "Hello <|toy");
    hr_chat_output_deinit(&output);
}

static void ids_differ_between_calls_and_seeds_and_nothing_else(void **state)
{
    char ids[3][64];

    (void)state;
    for (int i = 0; i < 3; i++) {
        hr_chat_output output;
        const char *text = START "[f(), g()]" END;

        hr_chat_output_init(&output, true, true, false, i < 2 ? 5 : 6);
        hr_chat_output_add(&output, text, strlen(text));
        assert_int_equal(output.n_calls, 2);
        assert_int_equal(strlen(output.calls[0].id), 29);
        (void)snprintf(ids[i], sizeof ids[i], "%s %s", output.calls[0].id, output.calls[1].id);
        assert_string_not_equal(output.calls[0].id, output.calls[1].id);
        hr_chat_output_deinit(&output);
    }
    assert_string_equal(ids[0], ids[1]);
    assert_string_not_equal(ids[0], ids[2]);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(reasoning_is_parted_from_the_answer),
        cmocka_unit_test(calls_are_read_out_of_the_block),
        cmocka_unit_test(what_models_get_wrong_is_tolerated),
        cmocka_unit_test(json_calls_are_read_too),
        cmocka_unit_test(a_block_that_is_no_call_stays_text),
        cmocka_unit_test(repeated_calls_behind_the_block_are_dropped),
        cmocka_unit_test(without_tools_the_markers_are_text),
        cmocka_unit_test(text_is_held_back_no_longer_than_needed),
        cmocka_unit_test(ids_differ_between_calls_and_seeds_and_nothing_else),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
