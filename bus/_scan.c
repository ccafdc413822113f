/* Splits received bytes into ZMTP messages: the inner loop of bus/zmtp.py, which also holds the same loop in Python.
 *
 * It reads whole messages of small frames only. Whatever is unusual (a command, a frame that is not complete, large or
 * malformed) stops it at the start of that message, and Codec.feed goes on from there. So it cannot fail on any bytes,
 * and every rule of the protocol stands in one place, the Python code.
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

static PyMethodDef methods[] = {
    {"scan", (PyCFunction)(void (*)(void))scan, METH_FASTCALL, scan_doc},
    {NULL, NULL, 0, NULL},
};

static struct PyModuleDef module = {
    PyModuleDef_HEAD_INIT, "bus._scan", "The inner loop of bus/zmtp.py in C.", 0, methods, NULL, NULL, NULL, NULL,
};

PyMODINIT_FUNC
PyInit__scan(void)
{
    return PyModule_Create(&module);
}
