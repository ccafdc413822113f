/* Two inner loops over bytes from outside, each also written in Python: splitting received bytes into ZMTP messages
 * (bus/zmtp.py) and measuring a msgpack value before it is decoded (schemas/values.py).
 *
 * `scan` reads whole messages of small frames only. Whatever is unusual (a command, a frame that is not complete, large
 * or malformed) stops it at the start of that message, and Codec.feed goes on from there. So it cannot fail on any
 * bytes, and every rule of the protocol stands in one place, the Python code.
 */

#define PY_SSIZE_T_CLEAN
#include <Python.h>
#include <stdint.h>

enum { MORE = 1, LONG = 2, MAX_FRAMES = 8 };

/* Header of the frame at `at`; returns its payload's offset, or 0 when the bytes end first or it is no plain frame. */
static Py_ssize_t
read_header(const uint8_t *data, Py_ssize_t at, Py_ssize_t end, uint8_t *flags, uint64_t *size)
{
    if (end - at < 2)
        return 0;
    *flags = data[at];
    if (*flags > (MORE | LONG))
        return 0;
    if (!(*flags & LONG)) {
        *size = data[at + 1];
        return at + 2;
    }
    if (end - at < 9)
        return 0;
    *size = 0;
    for (int i = 1; i <= 8; i++)
        *size = *size << 8 | data[at + i];
    return at + 9;
}

/* The message that starts at `*at`, as a list of bytes; moves `*at` behind it. NULL without an exception: not here. */
static PyObject *
read_message(const uint8_t *data, Py_ssize_t *at, Py_ssize_t end, uint64_t most)
{
    Py_ssize_t starts[MAX_FRAMES], sizes[MAX_FRAMES], position = *at, count = 0;
    uint64_t total = 0, size;
    uint8_t flags;
    do {
        Py_ssize_t start = read_header(data, position, end, &flags, &size);
        if (!start || count == MAX_FRAMES || size > most || (total += size) > most || size > (uint64_t)(end - start))
            return NULL;
        starts[count] = start;
        sizes[count++] = (Py_ssize_t)size;
        position = start + (Py_ssize_t)size;
    } while (flags & MORE);

    PyObject *frames = PyList_New(count);
    if (!frames)
        return NULL;
    for (Py_ssize_t i = 0; i < count; i++) {
        PyObject *frame = PyBytes_FromStringAndSize((const char *)data + starts[i], sizes[i]);
        if (!frame) {
            Py_DECREF(frames);
            return NULL;
        }
        PyList_SET_ITEM(frames, i, frame);
    }
    *at = position;
    return frames;
}

PyDoc_STRVAR(scan_doc, "scan(data, most_bytes) -> (messages, position)\n\n"
    "Whole messages of at most `most_bytes` at the start of `data`, each a list of frames, and where they end.");

static PyObject *
scan(PyObject *module, PyObject *const *args, Py_ssize_t nargs)
{
    if (nargs != 2 || !PyBytes_Check(args[0])) {
        PyErr_SetString(PyExc_TypeError, "scan(data: bytes, most_bytes: int)");
        return NULL;
    }
    Py_ssize_t most = PyLong_AsSsize_t(args[1]);
    if (most < 0) {
        if (!PyErr_Occurred())
            PyErr_SetString(PyExc_ValueError, "most_bytes is negative");
        return NULL;
    }
    const uint8_t *data = (const uint8_t *)PyBytes_AS_STRING(args[0]);
    Py_ssize_t end = PyBytes_GET_SIZE(args[0]), position = 0;
    PyObject *messages = PyList_New(0);
    if (!messages)
        return NULL;
    PyObject *frames;
    while ((frames = read_message(data, &position, end, (uint64_t)most))) {
        int failed = PyList_Append(messages, frames);
        Py_DECREF(frames);
        if (failed)
            break;
    }
    if (PyErr_Occurred()) {
        Py_DECREF(messages);
        return NULL;
    }
    return Py_BuildValue("(Nn)", messages, position);
}

/* Payload bytes and items of the msgpack value that starts with `byte`; -1 when the bytes end first or it is no value. */
static int
read_value(const uint8_t *data, uint64_t *at, uint64_t end, uint64_t *items)
{
    uint8_t byte = data[(*at)++];
    uint64_t skip = 0, length = 0;
    int width = 0, is_map = 0, is_container = 0;
    *items = 0;
    if (byte <= 0x7f || byte >= 0xe0 || byte == 0xc0 || byte == 0xc2 || byte == 0xc3)
        return 0;
    if (byte <= 0x8f)
        return (*items = 2 * (uint64_t)(byte & 0x0f)), 1;
    if (byte <= 0x9f)
        return (*items = byte & 0x0f), 1;
    if (byte <= 0xbf)
        skip = byte & 0x1f;
    else if (byte == 0xc1)
        return -1;
    else if (byte >= 0xc4 && byte <= 0xc6)
        width = 1 << (byte - 0xc4);
    else if (byte >= 0xc7 && byte <= 0xc9)
        width = 1 << (byte - 0xc7), skip = 1;
    else if (byte == 0xca || byte == 0xcb)
        skip = byte == 0xca ? 4 : 8;
    else if (byte >= 0xcc && byte <= 0xd3)
        skip = (uint64_t)1 << ((byte - 0xcc) & 3);
    else if (byte >= 0xd4 && byte <= 0xd8)
        skip = 1 + ((uint64_t)1 << (byte - 0xd4));
    else if (byte >= 0xd9 && byte <= 0xdb)
        width = 1 << (byte - 0xd9);
    else
        width = byte & 1 ? 4 : 2, is_container = 1, is_map = byte >= 0xde;
    if (end - *at < (uint64_t)width)
        return -1;
    for (int i = 0; i < width; i++)
        length = length << 8 | data[(*at)++];
    if (is_container)
        return (*items = is_map ? 2 * length : length), 1;
    skip += length;
    if (skip > end - *at)
        return -1;
    *at += skip;
    return 0;
}

PyDoc_STRVAR(measure_doc, "measure(data, most_values, most_depth) -> (values, depth)\n\n"
    "How many msgpack values `data` holds, containers and what is in them, and how deeply they nest; counting stops\n"
    "beyond either limit. (-1, -1) when it is not one whole value.");

enum { MAX_DEPTH = 1024 };

static PyObject *
measure(PyObject *module, PyObject *const *args, Py_ssize_t nargs)
{
    Py_buffer view;
    if (nargs != 3) {
        PyErr_SetString(PyExc_TypeError, "measure(data, most_values, most_depth)");
        return NULL;
    }
    long long most_values = PyLong_AsLongLong(args[1]), most_depth = PyLong_AsLongLong(args[2]);
    if (PyErr_Occurred())
        return NULL;
    if (most_depth < 0 || most_depth >= MAX_DEPTH) {
        PyErr_Format(PyExc_ValueError, "most_depth must be from 0 to %d", MAX_DEPTH - 1);
        return NULL;
    }
    if (PyObject_GetBuffer(args[0], &view, PyBUF_SIMPLE) < 0)
        return NULL;
    const uint8_t *data = view.buf;
    uint64_t end = (uint64_t)view.len, at = 0, left[MAX_DEPTH + 1], items;
    long long values = 0, depth = 0, deepest = 0;
    left[0] = 1;
    while (depth >= 0 && values <= most_values && deepest <= most_depth) {
        if (!left[depth]) {
            depth--;
            continue;
        }
        left[depth]--;
        int found = at < end ? read_value(data, &at, end, &items) : -1;
        if (found < 0) {
            values = deepest = -1;
            break;
        }
        values++;
        if (found) {
            left[++depth] = items;
            if (depth > deepest)
                deepest = depth;
        }
    }
    if (values >= 0 && depth < 0 && at != end)
        values = deepest = -1;
    PyBuffer_Release(&view);
    return Py_BuildValue("(LL)", values, deepest);
}

static PyMethodDef methods[] = {
    {"measure", (PyCFunction)(void (*)(void))measure, METH_FASTCALL, measure_doc},
    {"scan", (PyCFunction)(void (*)(void))scan, METH_FASTCALL, scan_doc},
    {NULL, NULL, 0, NULL},
};

static struct PyModuleDef module = {
    PyModuleDef_HEAD_INIT, "schemas._scan", "Inner loops of bus/zmtp.py and schemas/values.py in C.", 0, methods, NULL, NULL, NULL, NULL,
};

PyMODINIT_FUNC
PyInit__scan(void)
{
    return PyModule_Create(&module);
}
