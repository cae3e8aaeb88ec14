/* Arithmetic under Python's rules: floor division, modulo with the divisor's sign, floats where integers do not do.
 * Integers are 64 bits here; an overflow is an error and not a wrong number.
 */
#include "text/jinja_value.h"

#include <math.h>
#include <string.h>

static bool is_integer(const hr_jinja_value *value)
{
    return value->kind == HR_JINJA_VALUE_INT || value->kind == HR_JINJA_VALUE_BOOL;
}

static bool is_number(const hr_jinja_value *value)
{
    return is_integer(value) || value->kind == HR_JINJA_VALUE_FLOAT;
}

static int64_t integer_of(const hr_jinja_value *value)
{
    return value->kind == HR_JINJA_VALUE_BOOL ? value->as.boolean : value->as.integer;
}

static double real_of(const hr_jinja_value *value)
{
    return value->kind == HR_JINJA_VALUE_FLOAT ? value->as.real : (double)integer_of(value);
}

static bool overflow(hr_jinja_run *run)
{
    return hr_jinja_fail(run, "OverflowError: an integer is beyond 64 bits");
}

static int64_t floor_divide(int64_t a, int64_t b)
{
    int64_t quotient = a / b;

    return quotient - (a % b != 0 && (a < 0) != (b < 0));
}

static bool integer_power(hr_jinja_run *run, int64_t base, int64_t exponent, hr_jinja_value *out)
{
    int64_t result = 1;

    while (exponent > 0) {
        if ((exponent & 1) && __builtin_mul_overflow(result, base, &result))
            return overflow(run);
        exponent >>= 1;
        if (exponent > 0 && __builtin_mul_overflow(base, base, &base))
            return overflow(run);
    }
    *out = hr_jinja_int(result);
    return true;
}

static bool integer_arithmetic(hr_jinja_run *run, char op, int64_t a, int64_t b, hr_jinja_value *out)
{
    int64_t result = 0;
    bool overflows = false;

    if (op == 'P' && b >= 0)
        return integer_power(run, a, b, out);
    switch (op) {
    case '+':
        overflows = __builtin_add_overflow(a, b, &result);
        break;
    case '-':
        overflows = __builtin_sub_overflow(a, b, &result);
        break;
    case '*':
        overflows = __builtin_mul_overflow(a, b, &result);
        break;
    default: /* D and % */
        if (b == 0)
            return hr_jinja_fail(run, "ZeroDivisionError: division by zero");
        if (b == -1)
            overflows = op == 'D' && __builtin_sub_overflow((int64_t)0, a, &result);
        else
            result = op == 'D' ? floor_divide(a, b) : a - floor_divide(a, b) * b;
        break;
    }
    if (overflows)
        return overflow(run);
    *out = hr_jinja_int(result);
    return true;
}

static bool real_arithmetic(hr_jinja_run *run, char op, double a, double b, hr_jinja_value *out)
{
    double result, rest;

    if ((op == '/' || op == 'D' || op == '%') && b == 0.0)
        return hr_jinja_fail(run, "ZeroDivisionError: division by zero");
    switch (op) {
    case '+':
        result = a + b;
        break;
    case '-':
        result = a - b;
        break;
    case '*':
        result = a * b;
        break;
    case '/':
        result = a / b;
        break;
    case 'P':
        if ((a == 0.0 && b < 0) || (a < 0 && b != floor(b)))
            return hr_jinja_fail(run, "this power has no real value");
        result = pow(a, b);
        if (isinf(result) && isfinite(a) && isfinite(b))
            return hr_jinja_fail(run, "OverflowError: a power is too large");
        break;
    default:
        rest = fmod(a, b);
        if (rest != 0.0 && (rest < 0) != (b < 0))
            rest += b;
        else if (rest == 0.0)
            rest = copysign(0.0, b);
        result = op == '%' ? rest : rint((a - rest) / b);
        if (op == 'D' && result == 0.0)
            result = copysign(0.0, a / b);
        break;
    }
    *out = hr_jinja_real(result);
    return true;
}

static bool concatenate_sequences(hr_jinja_run *run, const hr_jinja_sequence *a, const hr_jinja_sequence *b,
                                  hr_jinja_value *out)
{
    if (!hr_jinja_sequence_new(run, a->flavour, a->n + b->n, out))
        return false;
    if (a->n > 0)
        memcpy(out->as.sequence->at, a->at, a->n * sizeof *a->at);
    if (b->n > 0)
        memcpy(out->as.sequence->at + a->n, b->at, b->n * sizeof *b->at);
    return true;
}

static bool is_list_or_tuple(const hr_jinja_value *value)
{
    return value->kind == HR_JINJA_VALUE_SEQUENCE && value->as.sequence->flavour <= HR_JINJA_FLAVOUR_TUPLE;
}

/* text * n and list * n */
static bool repeat(hr_jinja_run *run, const hr_jinja_value *what, int64_t times, hr_jinja_value *out)
{
    if (times < 0)
        times = 0;
    if (what->kind == HR_JINJA_VALUE_STRING) {
        hr_jinja_store *store = hr_jinja_store_new(run);

        for (int64_t i = 0; store && what->as.string.len > 0 && i < times; i++) {
            if (!hr_jinja_step(run, 1) || !hr_jinja_store_add(run, store, &what->as.string))
                return false;
        }
        if (!store)
            return false;
        *out = hr_jinja_store_value(store);
        return true;
    }
    const hr_jinja_sequence *sequence = what->as.sequence;
    size_t n;

    if (__builtin_mul_overflow(sequence->n, (size_t)times, &n))
        n = SIZE_MAX;
    if (!hr_jinja_sequence_new(run, sequence->flavour, n, out))
        return false;
    for (size_t i = 0; i < n; i++)
        out->as.sequence->at[i] = sequence->at[i % sequence->n];
    return true;
}

static bool tilde(hr_jinja_run *run, const hr_jinja_value *a, const hr_jinja_value *b, hr_jinja_value *out)
{
    hr_jinja_value left, right;

    return hr_jinja_str(run, a, &left) && hr_jinja_str(run, b, &right) &&
           hr_jinja_concat(run, &left.as.string, &right.as.string, out);
}

bool hr_jinja_binary(hr_jinja_run *run, char op, const hr_jinja_value *a, const hr_jinja_value *b, hr_jinja_value *out)
{
    const char name[3] = {op == 'D' ? '/' : op == 'P' ? '*' : op, op == 'D' ? '/' : op == 'P' ? '*' : '\0', '\0'};

    if (op == '~')
        return tilde(run, a, b, out);
    if (is_number(a) && is_number(b)) {
        if (is_integer(a) && is_integer(b) && op != '/' && !(op == 'P' && integer_of(b) < 0))
            return integer_arithmetic(run, op, integer_of(a), integer_of(b), out);
        return real_arithmetic(run, op, real_of(a), real_of(b), out);
    }
    if (op == '%' && a->kind == HR_JINJA_VALUE_STRING)
        return hr_jinja_fail(run, "formatting with %% is not supported; join the parts with ~");
    if (a->kind == HR_JINJA_VALUE_UNDEFINED || b->kind == HR_JINJA_VALUE_UNDEFINED)
        return hr_jinja_fail(run, "'%s' is undefined (operand of %s)",
                             a->kind == HR_JINJA_VALUE_UNDEFINED ? a->as.name : b->as.name, name);
    if (op == '+' && a->kind == HR_JINJA_VALUE_STRING && b->kind == HR_JINJA_VALUE_STRING)
        return hr_jinja_concat(run, &a->as.string, &b->as.string, out);
    if (op == '+' && is_list_or_tuple(a) && is_list_or_tuple(b) && a->as.sequence->flavour == b->as.sequence->flavour)
        return concatenate_sequences(run, a->as.sequence, b->as.sequence, out);
    if (op == '*' && (a->kind == HR_JINJA_VALUE_STRING || is_list_or_tuple(a)) && is_integer(b))
        return repeat(run, a, integer_of(b), out);
    if (op == '*' && (b->kind == HR_JINJA_VALUE_STRING || is_list_or_tuple(b)) && is_integer(a))
        return repeat(run, b, integer_of(a), out);
    return hr_jinja_fail(run, "TypeError: unsupported operand types for %s: '%s' and '%s'", name, hr_jinja_type_name(a),
                         hr_jinja_type_name(b));
}

bool hr_jinja_negate(hr_jinja_run *run, char op, const hr_jinja_value *a, hr_jinja_value *out)
{
    if (is_integer(a)) {
        int64_t value = integer_of(a);

        if (op == '-' && __builtin_sub_overflow((int64_t)0, value, &value))
            return overflow(run);
        *out = hr_jinja_int(value);
        return true;
    }
    if (a->kind == HR_JINJA_VALUE_FLOAT) {
        *out = hr_jinja_real(op == '-' ? -a->as.real : a->as.real);
        return true;
    }
    if (a->kind == HR_JINJA_VALUE_UNDEFINED)
        return hr_jinja_fail(run, "'%s' is undefined (operand of %c)", a->as.name, op);
    return hr_jinja_fail(run, "TypeError: bad operand type for unary %c: '%s'", op, hr_jinja_type_name(a));
}
