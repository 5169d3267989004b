# cython: language_level=3, boundscheck=False, wraparound=False, initializedcheck=False
"""The native encoder: reads libpq's results and writes CSV bytes in one pass.

`encode` takes one PGresult. `read` takes a connection on which a statement runs, and encodes its rows as they arrive;
it releases the GIL, so it can run in a thread. Both call libpq through the addresses that `bind` receives, which must
belong to the libpq that psycopg2 has loaded. No field becomes a Python object. The encoder must not keep a result after
the call (except the one with the server's error, see `failure`), start a statement, or know more of the dialect than
the bytes that it is given. It is one module so that `read` and `encode` compile into one unit: they share the inlined
code that copies a field, and no call crosses a module for each value. `server/encode/encoders.py` holds the pure-Python encoder, which writes the same bytes.
"""

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, _PyBytes_Resize
from cpython.object cimport PyObject
from libc.errno cimport EINTR, errno
from libc.stdint cimport uint8_t, uint64_t
from libc.string cimport memcmp, memcpy

cdef extern from "poll.h" nogil:
    struct pollfd:
        int fd
        short events
        short revents
    int poll(pollfd *fds, unsigned long count, int timeout)
    enum: POLLIN
    enum: POLLOUT

ctypedef int (*connection_function)(void *) noexcept nogil
ctypedef void *(*result_function)(void *) noexcept nogil
ctypedef void (*clear_function)(void *) noexcept nogil
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
cdef shape_function PQresultStatus = NULL
cdef connection_function PQsocket = NULL
cdef connection_function PQisBusy = NULL
cdef connection_function PQconsumeInput = NULL
cdef connection_function PQflush = NULL
cdef connection_function PQsslInUse = NULL
cdef result_function PQgetResult = NULL
cdef clear_function PQclear = NULL

# libpq-fe.h, ExecStatusType.
cdef enum:
    COMMAND_OK = 1
    TUPLES_OK = 2
    SINGLE_TUPLE = 9
    TUPLES_CHUNK = 12

# How `read` ended; the same numbers in server/postgres/rows.py.
cdef enum:
    MORE = 0       # there are more rows, or there may be
    END = 1        # the statement has no more rows
    FAILED = 2     # the server stopped the statement; `failure` returns the PGresult with the error
    LOST = 3       # the connection is closed
    TIMED_OUT = 4     # nothing arrived for `patience` milliseconds
    WOKEN = 5      # the file descriptor `wake` became readable

# Milliseconds to wait for more rows when there are some already, but less than `most` bytes of them.
cdef enum:
    LINGER = 10
# Milliseconds between two reads of an encrypted connection: OpenSSL may have buffered bytes that poll does not see.
cdef enum:
    TLS_LOOK = 10

# How the values of a column are written; bits of `kind`. The same numbers in server/encode/encoders.py.
cdef enum:
    PLAIN = 0   # copied: the text of this type never holds a byte that needs quotes
    SCAN = 1    # quoted if the value needs it
    ALWAYS = 2  # quoted unless NULL
    GUARD = 4   # prefixed with an apostrophe if a spreadsheet would take it for a formula
    JSON = 8    # copied, with spaces in place of the line breaks between its tokens

cdef uint64_t ONES = 0x0101010101010101
cdef uint64_t HIGHS = 0x8080808080808080


def bind(dict addresses):
    """Set the addresses of libpq's functions, by name. Call this once before the first encoder is used."""
    global PQntuples, PQnfields, PQftype, PQgetvalue, PQgetlength, PQgetisnull
    global PQresultStatus, PQsocket, PQisBusy, PQconsumeInput, PQflush, PQsslInUse, PQgetResult, PQclear
    PQntuples = <shape_function><size_t>addresses["PQntuples"]
    PQnfields = <shape_function><size_t>addresses["PQnfields"]
    PQftype = <type_function><size_t>addresses["PQftype"]
    PQgetvalue = <value_function><size_t>addresses["PQgetvalue"]
    PQgetlength = <field_function><size_t>addresses["PQgetlength"]
    PQgetisnull = <field_function><size_t>addresses["PQgetisnull"]
    PQresultStatus = <shape_function><size_t>addresses["PQresultStatus"]
    PQsocket = <connection_function><size_t>addresses["PQsocket"]
    PQisBusy = <connection_function><size_t>addresses["PQisBusy"]
    PQconsumeInput = <connection_function><size_t>addresses["PQconsumeInput"]
    PQflush = <connection_function><size_t>addresses["PQflush"]
    PQsslInUse = <connection_function><size_t>addresses["PQsslInUse"]
    PQgetResult = <result_function><size_t>addresses["PQgetResult"]
    PQclear = <clear_function><size_t>addresses["PQclear"]


cdef inline uint64_t zero_bytes(uint64_t word) noexcept nogil:
    """Return non-zero if any byte of the word is zero: the high bit of that byte, and perhaps of bytes above it."""
    return (word - ONES) & ~word & HIGHS


cdef class Encoder:
    """Encode PGresults in COPY's CSV format (PostgreSQL manual, COPY, "CSV Format").

    delimiter, quote: one ASCII byte each. null: the bytes for NULL. eol: the end of a line. kind_of: maps a type OID
    to a kind; called once for each column, since all results of an encoder have the same columns.
    """

    cdef uint8_t delimiter
    cdef uint8_t quote
    cdef uint8_t special[256]
    cdef uint64_t delimiters
    cdef uint64_t quotes
    cdef bytes null
    cdef const char *null_at
    cdef Py_ssize_t null_length
    cdef bytes eol
    cdef const char *eol_at
    cdef Py_ssize_t eol_length
    cdef object kind_of
    cdef bytes kinds
    # The first byte of `kinds`: one byte for each column.
    cdef const uint8_t *kinds_at
    cdef int columns
    cdef Py_ssize_t last_size
    # While a call runs: the bytes object that it fills (an owned reference), its first byte, the next byte to write
    # and the byte after its last.
    cdef PyObject *buffer
    cdef char *start
    cdef char *out
    cdef char *end
    cdef size_t failed_result

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
        self.kinds_at = NULL
        self.columns = 0
        self.null_at = PyBytes_AS_STRING(null)
        self.null_length = len(null)
        self.eol_at = PyBytes_AS_STRING(eol)
        self.eol_length = len(eol)
        self.last_size = 0
        self.buffer = NULL
        self.failed_result = 0
        for i in range(256):
            self.special[i] = 0
        for i in (self.delimiter, self.quote, 10, 13):
            self.special[i] = 1

    def __dealloc__(self):
        if self.failed_result:
            PQclear(<void *>self.failed_result)

    cdef inline bint needs_quotes(self, const uint8_t *value, Py_ssize_t length) noexcept nogil:
        """Return whether the value holds the delimiter, the quote, LF or CR. Look at eight bytes at a time."""
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
                i = length - 8  # the last word overlaps the one before it

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
        """Return the rows of the PGresult at this address as lines, without a header.

        The caller keeps the result alive during the call. Raise ValueError if the address is 0, and MemoryError.
        """
        if pgresult == 0 or PQntuples == NULL:
            raise ValueError("no result to encode")
        self.begin()
        try:
            self.put_result(<const void *>pgresult)
        except BaseException:
            self.drop()
            raise
        return self.taken()

    def read(self, size_t connection, int wake, Py_ssize_t most, int patience):
        """Return the next rows of the statement that runs on this PGconn: (lines, number of rows, how the call ended).

        most: bytes; the call returns when it has at least that many, and with fewer at the end of the statement or
        when no row arrives for LINGER milliseconds. patience: milliseconds to wait for the first row, -1 for no limit.
        wake: a file descriptor that ends the call when it becomes readable. Blocks: call it in a thread that has the
        connection for itself. Raise ValueError if the address is 0, and MemoryError.
        """
        if connection == 0 or PQntuples == NULL:
            raise ValueError("no connection to read from")
        cdef Py_ssize_t rows = 0
        cdef int ended
        self.begin()
        try:
            with nogil:
                ended = self.read_on(<void *>connection, wake, most, patience, &rows)
        except BaseException:
            self.drop()
            raise
        return self.taken(), rows, ended

    def failure(self):
        """Return the address of the PGresult with the server's error, or 0. The caller reads and clears the result."""
        cdef size_t result = self.failed_result
        self.failed_result = 0
        return result

    cdef int read_on(
        self, void *connection, int wake, Py_ssize_t most, int patience, Py_ssize_t *rows
    ) except -1 nogil:
        cdef pollfd watched[2]
        cdef void *result
        cdef int status, ready, unsent, wait
        cdef int waited = 0
        cdef bint encrypted = PQsslInUse(connection) != 0
        cdef Py_ssize_t used = 0
        watched[1].fd = wake
        watched[1].events = POLLIN
        while True:
            while not PQisBusy(connection):
                result = PQgetResult(connection)
                if result == NULL:
                    return FAILED if self.failed_result else END
                status = PQresultStatus(result)
                if status == TUPLES_CHUNK or status == SINGLE_TUPLE or status == TUPLES_OK:
                    try:
                        used = self.put_result(result)
                        rows[0] += PQntuples(result)
                    finally:
                        PQclear(result)
                    if used >= most:
                        return MORE
                elif status == COMMAND_OK or self.failed_result:
                    PQclear(result)
                else:
                    self.failed_result = <size_t>result
            unsent = PQflush(connection)
            if unsent < 0:
                return LOST
            watched[0].fd = PQsocket(connection)
            if watched[0].fd < 0:
                return LOST
            watched[0].events = POLLIN | POLLOUT if unsent else POLLIN
            wait = LINGER if used else patience
            if encrypted and (wait < 0 or wait > TLS_LOOK):
                wait = TLS_LOOK
            ready = poll(watched, 2, wait)
            if ready < 0 and errno != EINTR:
                return LOST
            if ready > 0 and watched[1].revents:
                return WOKEN
            if ready == 0:
                if used:
                    return MORE
                waited += wait
                if patience >= 0 and waited >= patience:
                    return TIMED_OUT
                if not encrypted:
                    continue
            elif ready > 0:
                waited = 0
            if not PQconsumeInput(connection):
                return LOST

    cdef int begin(self) except -1:
        cdef Py_ssize_t capacity = self.last_size + self.last_size // 8 + 4096
        self.buffer = <PyObject *>PyBytes_FromStringAndSize_owned(capacity)
        self.start = PyBytes_AS_STRING(<object>self.buffer)
        self.out = self.start
        self.end = self.start + capacity
        return 0

    cdef void drop(self):
        if self.buffer != NULL:
            take(self.buffer)
            self.buffer = NULL

    cdef object taken(self):
        cdef Py_ssize_t used = self.out - self.start
        cdef PyObject *buffer = self.buffer
        self.buffer = NULL
        self.last_size = used
        _PyBytes_Resize(&buffer, used)
        return take(buffer)

    cdef int grow(self, Py_ssize_t room) except -1 nogil:
        """Make the buffer large enough for `room` more bytes."""
        cdef Py_ssize_t used = self.out - self.start
        cdef Py_ssize_t capacity = (used + room) + (used + room) // 2
        with gil:
            _PyBytes_Resize(&self.buffer, capacity)  # raises MemoryError and clears the pointer
            self.start = PyBytes_AS_STRING(<object>self.buffer)
        self.out = self.start + used
        self.end = self.start + capacity
        return 0

    cdef int learn_kinds(self, const void *result) except -1 nogil:
        cdef int columns = PQnfields(result)
        with gil:
            if self.kinds is not None:
                raise ValueError("the results of one encoder have the same columns")
            self.kinds = bytes([self.kind_of(PQftype(result, column)) for column in range(columns)])
            self.kinds_at = <const uint8_t *>PyBytes_AS_STRING(self.kinds)
            self.columns = columns
        return 0

    cdef Py_ssize_t put_result(self, const void *result) except -1 nogil:
        """Write the rows of this result. Return how many bytes the buffer holds then."""
        cdef int rows = PQntuples(result)
        cdef int columns = PQnfields(result)
        if self.kinds_at == NULL or columns != self.columns:
            self.learn_kinds(result)
        cdef const uint8_t *kinds = self.kinds_at
        cdef const char *null = self.null_at
        cdef Py_ssize_t null_length = self.null_length
        cdef const char *eol = self.eol_at
        cdef Py_ssize_t eol_length = self.eol_length
        cdef bint alone = columns == 1
        cdef int row, column
        cdef Py_ssize_t length, room
        cdef const uint8_t *value
        cdef uint8_t kind
        cdef bint guarded, looks_null
        # The bytes that a field can need besides twice its own length: a delimiter, two quotes, an apostrophe and the
        # end of the line, or the bytes for NULL.
        cdef Py_ssize_t overhead = 4 + eol_length + null_length
        cdef char *out = self.out

        for row in range(rows):
            for column in range(max(columns, 1)):
                length = PQgetlength(result, row, column) if columns else 0
                room = 2 * length + overhead
                if self.end - out < room:
                    self.out = out
                    self.grow(room)
                    out = self.out
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
                if looks_null:  # a value that equals the bytes for NULL is quoted
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
        self.out = out
        return out - self.start


cdef inline bint is_formula(uint8_t first) noexcept nogil:
    """Return whether a spreadsheet takes text with this first byte for a formula: = + - @ tab CR."""
    return first == 61 or first == 43 or first == 45 or first == 64 or first == 9 or first == 13


cdef extern from *:
    """
    #define PyBytes_FromStringAndSize_owned(size) PyBytes_FromStringAndSize(NULL, (size))
    static inline PyObject *take(PyObject *owned) { return owned; }
    """
    PyObject *PyBytes_FromStringAndSize_owned(Py_ssize_t size) except NULL
    object take(PyObject *owned)
