/* The tile instructions of AMX on plain arrays, as Intel's manual defines them (Software Developer's Manual, volume 2:
 * LDTILECFG, TILELOADD, TILESTORED, TDPBSSD, TILEZERO, TILERELEASE). To be included after <immintrin.h>; takes the
 * place of the intrinsics of the same names. What the processor would refuse aborts.
 */
#ifndef TILE_MODEL_H
#define TILE_MODEL_H

#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#undef _tile_loadconfig
#undef _tile_release
#undef _tile_zero
#undef _tile_loadd
#undef _tile_stored
#undef _tile_dpbssd
#define _tile_loadconfig tile_model_load_config
#define _tile_release tile_model_release
#define _tile_zero tile_model_zero
#define _tile_loadd tile_model_load
#define _tile_stored tile_model_store
#define _tile_dpbssd tile_model_dot

enum { TILE_MODEL_TILES = 8, TILE_MODEL_ROWS = 16, TILE_MODEL_BYTES = 64 };

typedef struct tile_model {
    int is_configured, rows[TILE_MODEL_TILES], row_bytes[TILE_MODEL_TILES];
    unsigned char data[TILE_MODEL_TILES][TILE_MODEL_ROWS][TILE_MODEL_BYTES];
} tile_model;

static tile_model tile_state;

static void tile_model_require(int condition)
{
    if (!condition)
        abort();
}

static void tile_model_release(void)
{
    memset(&tile_state, 0, sizeof tile_state);
}

/* 64 bytes: palette, start row, 14 zeros, bytes of a row of 16 tiles (16 bits each), rows of 16 tiles. */
static void tile_model_load_config(const void *at)
{
    const unsigned char *config = at;

    tile_model_release();
    tile_model_require(config[0] == 1 && config[1] == 0);
    for (int i = 2; i < 16; i++)
        tile_model_require(config[i] == 0);
    for (int t = 0; t < 16; t++) {
        int row_bytes = config[16 + 2 * t] | config[17 + 2 * t] << 8, rows = config[48 + t];

        tile_model_require(row_bytes <= TILE_MODEL_BYTES && rows <= TILE_MODEL_ROWS && (row_bytes == 0) == (rows == 0));
        tile_model_require(t < TILE_MODEL_TILES || rows == 0);
        if (t < TILE_MODEL_TILES) {
            tile_state.rows[t] = rows;
            tile_state.row_bytes[t] = row_bytes;
        }
    }
    tile_state.is_configured = 1;
}

static void tile_model_valid(int t)
{
    tile_model_require(tile_state.is_configured && t >= 0 && t < TILE_MODEL_TILES && tile_state.rows[t] > 0);
}

static void tile_model_zero(int t)
{
    tile_model_valid(t);
    memset(tile_state.data[t], 0, sizeof tile_state.data[t]);
}

static void tile_model_load(int t, const void *from, size_t stride)
{
    tile_model_zero(t);
    for (int r = 0; r < tile_state.rows[t]; r++)
        memcpy(tile_state.data[t][r], (const unsigned char *)from + (size_t)r * stride,
               (size_t)tile_state.row_bytes[t]);
}

static void tile_model_store(int t, void *to, size_t stride)
{
    tile_model_valid(t);
    for (int r = 0; r < tile_state.rows[t]; r++)
        memcpy((unsigned char *)to + (size_t)r * stride, tile_state.data[t][r], (size_t)tile_state.row_bytes[t]);
}

/* c[m][n] += sum over k and four bytes of a[m][4 k + i] b[k][4 n + i], all signed. */
static void tile_model_dot(int c, int a, int b)
{
    tile_model_valid(c);
    tile_model_valid(a);
    tile_model_valid(b);
    tile_model_require(c != a && c != b && a != b);
    tile_model_require(tile_state.rows[c] == tile_state.rows[a] && tile_state.row_bytes[c] == tile_state.row_bytes[b] &&
                       tile_state.row_bytes[a] == 4 * tile_state.rows[b] && tile_state.row_bytes[c] % 4 == 0);
    for (int m = 0; m < tile_state.rows[c]; m++) {
        for (int n = 0; n < tile_state.row_bytes[c] / 4; n++) {
            uint32_t sum;

            memcpy(&sum, &tile_state.data[c][m][4 * n], 4);
            for (int k = 0; k < tile_state.row_bytes[a]; k++)
                sum += (uint32_t)((int8_t)tile_state.data[a][m][k] * (int8_t)tile_state.data[b][k / 4][4 * n + k % 4]);
            memcpy(&tile_state.data[c][m][4 * n], &sum, 4);
        }
    }
}

#endif
