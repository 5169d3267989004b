# cython: language_level=3, boundscheck=False, wraparound=False, initializedcheck=False
"""The native encoder: one PGresult in, the CSV bytes of all its rows out, in a single pass.

It reads fields through libpq's own accessors, whose addresses `bind` receives: they must belong to the
libpq that made the results, that is the one psycopg2 has loaded. No field ever becomes a Python object.
It must not keep a result beyond the call (psycopg2 frees it at the cursor's next execute), do any I/O, or
know more of the dialect than the bytes it is given. `server/encode.py` holds the pure-Python twin, which
gives the same bytes.
"""

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, _PyBytes_Resize
from cpython.object cimport PyObject
from libc.stdint cimport uint8_t, uint64_t
from libc.string cimport memcmp, memcpy

ctypedef int (*shape_function)(const void *) noexcept nogil
ctypedef unsigned int (*type_function)(const void *, int) noexcept nogil
ctypedef char *(*value_function)(const void *, int, int) noexcept nogil
ctypedef int (*field_function)(const void *, int, int) noexcept nogil

cdef shape_function PQntuples = NULL
cdef shape_function PQnfields = NULL
cdef type_function PQftype = NULL
cdef value_function PQgetvalue = NULL
cdef field_function PQgetlength = NULL
cdef field_function PQgetisnull = NULL

# How a column's values are written; bits of `kind`. The same in server/encode.py.
cdef enum:
    PLAIN = 0   # text that never holds a byte that needs quotes: copied as it is
    SCAN = 1    # quoted where the value asks for it
    ALWAYS = 2  # quoted unless NULL
    GUARD = 4   # an apostrophe before what a spreadsheet takes for a formula
    JSON = 8    # copied, line breaks between its tokens as spaces

cdef uint64_t ONES = 0x0101010101010101
cdef uint64_t HIGHS = 0x8080808080808080


def bind(dict addresses):
    """Take the addresses of libpq's accessors, by name. Call once before the first encode."""
    global PQntuples, PQnfields, PQftype, PQgetvalue, PQgetlength, PQgetisnull
    PQntuples = <shape_function><size_t>addresses["PQntuples"]
    PQnfields = <shape_function><size_t>addresses["PQnfields"]
    PQftype = <type_function><size_t>addresses["PQftype"]
    PQgetvalue = <value_function><size_t>addresses["PQgetvalue"]
    PQgetlength = <field_function><size_t>addresses["PQgetlength"]
    PQgetisnull = <field_function><size_t>addresses["PQgetisnull"]


cdef inline uint64_t zero_bytes(uint64_t word) noexcept nogil:
    """Non-zero if any byte of the word is zero (the high bit of that byte, and maybe of bytes above)."""
    return (word - ONES) & ~word & HIGHS


cdef class Encoder:
    """Encodes PGresults in COPY's CSV format (PostgreSQL manual, COPY, "CSV Format").

    delimiter, quote: one ASCII byte each; null, eol: what stands for NULL and ends a line; kind_of: type OID →
    kind, asked once, since all results of an encoder have the same columns.
    """

    cdef uint8_t delimiter
    cdef uint8_t quote
    cdef uint8_t special[256]
    cdef uint64_t delimiters
    cdef uint64_t quotes
    cdef bytes null
    cdef bytes eol
    cdef object kind_of
    cdef bytes kinds
    cdef Py_ssize_t last_size

    def __cinit__(self, bytes delimiter, bytes quote, bytes null, bytes eol, object kind_of):
        if len(delimiter) != 1 or len(quote) != 1:
            raise ValueError("delimiter and quote are one byte each")
        cdef int i
        self.delimiter = delimiter[0]
        self.quote = quote[0]
        self.delimiters = ONES * self.delimiter
        self.quotes = ONES * self.quote
        self.null = null
        self.eol = eol
        self.kind_of = kind_of
        self.kinds = None
        self.last_size = 0
        for i in range(256):
            self.special[i] = 0
        for i in (self.delimiter, self.quote, 10, 13):
            self.special[i] = 1

    cdef inline bint needs_quotes(self, const uint8_t *value, Py_ssize_t length) noexcept nogil:
        """Whether the value holds the delimiter, the quote, LF or CR: eight bytes a step."""
        cdef uint64_t word
        cdef uint64_t found = 0
        cdef Py_ssize_t i = 0
        if length < 8:
            while i < length:
                found |= self.special[value[i]]
                i += 1
            return found != 0
        while True:
            memcpy(&word, value + i, 8)
            found = (
                zero_bytes(word ^ self.delimiters)
                | zero_bytes(word ^ self.quotes)
                | zero_bytes(word ^ (ONES * 10))
                | zero_bytes(word ^ (ONES * 13))
            )
            if found:
                return True
            i += 8
            if i >= length:
                return False
            if i > length - 8:
                i = length - 8  # the last word overlaps the one before

    cdef inline char *put_quoted(self, char *out, const uint8_t *value, Py_ssize_t length, bint guarded) noexcept nogil:
        cdef Py_ssize_t i
        out[0] = <char>self.quote
        out += 1
        if guarded:
            out[0] = 39
            out += 1
        for i in range(length):
            if value[i] == self.quote:
                out[0] = <char>self.quote
                out += 1
            out[0] = <char>value[i]
            out += 1
        out[0] = <char>self.quote
        return out + 1

    cdef inline char *put_json(self, char *out, const uint8_t *value, Py_ssize_t length) noexcept nogil:
        cdef Py_ssize_t i
        memcpy(out, value, length)
        for i in range(length):
            if out[i] == 10 or out[i] == 13:
                out[i] = 32
        return out + length

    def encode(self, size_t pgresult):
        """The rows of the PGresult at this address as lines, without a header.

        The caller keeps the result alive during the call. Raises MemoryError, ValueError for no result.
        """
        if pgresult == 0 or PQntuples == NULL:
            raise ValueError("no result to encode")
        cdef const void *result = <const void *>pgresult
        cdef int rows = PQntuples(result)
        cdef int columns = PQnfields(result)
        if self.kinds is None:
            self.kinds = bytes([self.kind_of(PQftype(result, column)) for column in range(columns)])
        if len(self.kinds) != columns:
            raise ValueError("the results of one encoder have the same columns")
        cdef const uint8_t *kinds = <const uint8_t *>PyBytes_AS_STRING(self.kinds)
        cdef bint alone = columns == 1
        cdef int row, column
        cdef Py_ssize_t length, used, room
        cdef const uint8_t *value
        cdef uint8_t kind
        cdef bint guarded, looks_null
        cdef Py_ssize_t null_length = len(self.null)
        cdef const char *null = PyBytes_AS_STRING(self.null)
        cdef Py_ssize_t eol_length = len(self.eol)
        cdef const char *eol = PyBytes_AS_STRING(self.eol)
        # What a field can need beside its own bytes, doubled: delimiter, two quotes, an apostrophe, the end of
        # the line; or what stands for NULL.
        cdef Py_ssize_t overhead = 4 + eol_length + null_length

        cdef Py_ssize_t capacity = self.last_size + self.last_size // 8 + 4096
        cdef PyObject *buffer = <PyObject *>PyBytes_FromStringAndSize_owned(capacity)
        cdef char *start = PyBytes_AS_STRING(<object>buffer)
        cdef char *out = start
        cdef char *end = start + capacity

        for row in range(rows):
            for column in range(max(columns, 1)):
                length = PQgetlength(result, row, column) if columns else 0
                room = 2 * length + overhead
                if end - out < room:
                    used = out - start
                    capacity = 2 * capacity + room
                    _PyBytes_Resize(&buffer, capacity)  # raises MemoryError and clears the pointer
                    start = PyBytes_AS_STRING(<object>buffer)
                    out = start + used
                    end = start + capacity
                if columns == 0:
                    break
                if column:
                    out[0] = <char>self.delimiter
                    out += 1
                if length == 0 and PQgetisnull(result, row, column):
                    memcpy(out, null, null_length)
                    out += null_length
                    continue
                kind = kinds[column]
                value = <const uint8_t *>PQgetvalue(result, row, column)
                guarded = (kind & GUARD) and length and is_formula(value[0])
                if not guarded:
                    looks_null = length == null_length and memcmp(value, null, length) == 0
                else:
                    looks_null = (
                        length + 1 == null_length and null[0] == 39 and memcmp(value, null + 1, length) == 0
                    )
                if looks_null:  # not NULL, and must not look like it
                    out = self.put_quoted(out, value, length, guarded)
                    continue
                if kind == PLAIN:
                    memcpy(out, value, length)
                    out += length
                    continue
                if kind & JSON:
                    out = self.put_json(out, value, length)
                    continue
                if (
                    kind & ALWAYS
                    or self.needs_quotes(value, length)
                    # COPY quotes a lone \. so that older servers do not read it as the end of the data.
                    or (alone and length == 2 and value[0] == 92 and value[1] == 46)
                ):
                    out = self.put_quoted(out, value, length, guarded)
                    continue
                if guarded:
                    out[0] = 39
                    out += 1
                memcpy(out, value, length)
                out += length
            memcpy(out, eol, eol_length)
            out += eol_length

        used = out - start
        self.last_size = used
        _PyBytes_Resize(&buffer, used)
        return take(buffer)


cdef inline bint is_formula(uint8_t first) noexcept nogil:
    """Whether a spreadsheet takes text that begins with this byte for a formula: = + - @ tab CR."""
    return first == 61 or first == 43 or first == 45 or first == 64 or first == 9 or first == 13


cdef extern from *:
    """
    #define PyBytes_FromStringAndSize_owned(size) PyBytes_FromStringAndSize(NULL, (size))
    static inline PyObject *take(PyObject *owned) { return owned; }
    """
    PyObject *PyBytes_FromStringAndSize_owned(Py_ssize_t size) except NULL
    object take(PyObject *owned)
