/* Decode a rectangle of a JPEG with libjpeg-turbo: rows above it are skipped, rows below and columns beside it are not decoded.
   Plain C without Python's headers; visionlab calls it through ctypes, which gives up Python's lock meanwhile.
   Whatever is wrong with the data, a warning of the library included, ends in a non-zero result and a message. */
#include <setjmp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <jpeglib.h>

#if defined(_WIN32)
#define PUBLIC __declspec(dllexport)
#else
#define PUBLIC __attribute__((visibility("default")))
#endif

#define MARGIN 2      /* columns decoded beside the rectangle: smooth chroma needs its neighbours */

typedef struct {
    struct jpeg_error_mgr base;
    jmp_buf back;
    char text[JMSG_LENGTH_MAX];
} errors;

static void leave(j_common_ptr c) {
    errors *e = (errors *)c->err;
    e->base.format_message(c, e->text);
    longjmp(e->back, 1);
}

static void on_message(j_common_ptr c, int level) { if (level < 0) leave(c); }

/* data, n     the file
   denominator 1, 2, 4 or 8: decode at that fraction of the size; the rectangle is in pixels of the shrunk image
   channels    3 for RGB, 1 for grey
   out         height*width*channels bytes
   text        at least 200 bytes for the message
   returns 0, or 1 for damaged data, 2 for no memory, 3 for a rectangle outside the image */
PUBLIC int visionlab_region(const unsigned char *data, size_t n, int denominator, int channels,
                            int top, int left, int height, int width, unsigned char *out, char *text) {
    struct jpeg_decompress_struct c;
    errors e;
    unsigned char *volatile row = NULL;
    JDIMENSION from, count;
    int y, right;

    e.text[0] = 0;
    c.err = jpeg_std_error(&e.base);
    e.base.error_exit = leave;
    e.base.emit_message = on_message;
    if (setjmp(e.back)) {
        jpeg_destroy_decompress(&c);
        free(row);
        snprintf(text, 200, "%s", e.text);
        return 1;
    }
    jpeg_create_decompress(&c);
    jpeg_mem_src(&c, (unsigned char *)data, (unsigned long)n);
    jpeg_read_header(&c, TRUE);
    c.out_color_space = channels == 1 ? JCS_GRAYSCALE : JCS_RGB;
    c.scale_num = 1;
    c.scale_denom = denominator;
    jpeg_calc_output_dimensions(&c);
    if (top < 0 || left < 0 || height < 1 || width < 1 || top + height > (int)c.output_height || left + width > (int)c.output_width) {
        jpeg_destroy_decompress(&c);
        snprintf(text, 200, "the rectangle is outside the image");
        return 3;
    }
    jpeg_start_decompress(&c);
    row = malloc((size_t)c.output_width*channels + 64);
    if (!row) {
        jpeg_destroy_decompress(&c);
        snprintf(text, 200, "no memory");
        return 2;
    }
    from = left > MARGIN ? left - MARGIN : 0;
    right = left + width + MARGIN;
    count = (right < (int)c.output_width ? right : (int)c.output_width) - from;
    if (from || count < c.output_width) jpeg_crop_scanline(&c, &from, &count);
    if (top) jpeg_skip_scanlines(&c, top);
    for (y = 0; y < height; y++) {
        JSAMPROW rows[1];
        rows[0] = row;
        jpeg_read_scanlines(&c, rows, 1);
        memcpy(out + (size_t)y*width*channels, row + (size_t)(left - (int)from)*channels, (size_t)width*channels);
    }
    jpeg_abort_decompress(&c);
    jpeg_destroy_decompress(&c);
    free(row);
    return 0;
}

/* Windows linkers ask for it; the module is never imported, only loaded. */
PUBLIC void *PyInit__region(void) { return NULL; }
