# cython: language_level=3, boundscheck=False, wraparound=False, initializedcheck=False
"""The native encoder: reads DataRow messages from the socket and writes CSV bytes in one pass.

`read` works without the GIL, so that it can run in a thread. It takes messages from a receive buffer of its own, and
sends what the portal needs to go on. No field becomes a Python object. It is one module so that all of it compiles into
one unit: parser and encoder share inlined code, and no call crosses a module for each value. It must not know more of
the protocol than the answers to a portal, nor more of the dialect than the bytes that it is given.
`server/postgres/reader.py` has the contract, `server/postgres/portal.py` and `server/encode/encoders.py` do the same in
Python. Sources: PostgreSQL manual, "Message Formats"; COPY, "CSV Format".
"""

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, _PyBytes_Resize
from cpython.object cimport PyObject
from libc.errno cimport EAGAIN, EINTR, errno
from libc.stdint cimport int32_t, uint8_t, uint32_t, uint64_t
from libc.stdlib cimport free, malloc, realloc
from libc.string cimport memcmp, memcpy, memmove

cdef extern from "poll.h" nogil:
    struct pollfd:
        int fd
        short events
        short revents
    int poll(pollfd *fds, unsigned long count, int timeout)
    enum: POLLIN
    enum: POLLOUT

cdef extern from "unistd.h" nogil:
    int usleep(unsigned int microseconds)

cdef extern from "sys/socket.h" nogil:
    Py_ssize_t recv(int fd, void *buffer, size_t length, int flags)
    Py_ssize_t send(int fd, const void *buffer, size_t length, int flags)

cdef extern from *:
    """
    #include <sys/socket.h>
    #ifndef MSG_NOSIGNAL  /* macOS: Python ignores SIGPIPE anyway */
    #define MSG_NOSIGNAL 0
    #endif
    """
    enum: MSG_NOSIGNAL

# OpenSSL's, by the addresses that `bind` receives: they must belong to the OpenSSL that libpq uses.
ctypedef int (*read_function)(void *, void *, int) noexcept nogil
ctypedef int (*write_function)(void *, const void *, int) noexcept nogil
ctypedef int (*error_function)(const void *, int) noexcept nogil
ctypedef void (*clear_function)() noexcept nogil

cdef read_function SSL_read = NULL
cdef write_function SSL_write = NULL
cdef error_function SSL_get_error = NULL
cdef clear_function ERR_clear_error = NULL

cdef enum:
    SSL_ERROR_WANT_READ = 2
    SSL_ERROR_WANT_WRITE = 3

# How `read` ended; the same numbers in server/postgres/reader.py, which says what each means.
cdef enum:
    MORE = 0
    END = 1
    FAILED = 2
    LOST = 3
    TIMED_OUT = 4
    WOKEN = 5
    ROOM = 6
    # Not the end of a read: the next message, or the next part of a large one, has not arrived.
    INCOMPLETE = 7

# The same numbers and reasons in server/postgres/reader.py.
cdef enum:
    LINGER = 10
    UNITS_AHEAD = 3

# Microseconds to wait before looking at the socket again while rows flow. PostgreSQL sends 8 kB at a time, and to wake up
# for each costs more than to read it. Rows flow once a read, or the one before it, has given FLOW_BYTES of lines. The
# pause is longer, up to MOST_NAP, where less than NAP_BYTES came since the one before: the processors are busy then.
# Measured in docs/performance.md.
cdef enum:
    NAP = 200
    MOST_NAP = 1600
    NAP_BYTES = 96 << 10
    FLOW_BYTES = 64 << 10

# Bytes of the receive buffer. A row that does not fit is encoded field by field as it arrives. Measured in
# docs/performance.md.
cdef enum:
    RECEIVE_BYTES = 64 << 10
# Bytes of a value beyond which it is written in parts. It is held only as long as it is not known whether it needs
# quotes: up to HELD_BYTES at once, and beyond them when the caller allows it. The same number in
# server/postgres/reader.py.
cdef enum:
    LARGE_BYTES = 64 << 10
    HELD_BYTES = 1 << 20
    # Of a value that is held, written in one step.
    PART_BYTES = 32 << 10

# What is done with a value of more than LARGE_BYTES: it is searched for bytes that need quotes, its first quote is
# written, or its bytes are.
cdef enum:
    DECIDING = 0
    OPENING = 1
    WRITING = 2
# Bytes of an ErrorResponse or a RowDescription that are kept. 1,664 columns, the most that a SELECT can have, take less
# than 140 kB; the SQLSTATE and the message of an error come first.
cdef enum:
    KEPT_BYTES = 256 << 10

# How the values of a column are written; bits of `kind`. The same numbers in server/encode/encoders.py.
cdef enum:
    PLAIN = 0   # copied: the text of this type never holds a byte that needs quotes
    SCAN = 1    # quoted if the value needs it
    ALWAYS = 2  # quoted unless NULL
    GUARD = 4   # with an apostrophe before each beginning of a formula
    JSON = 8    # copied, with spaces in place of the line breaks between its tokens
    PROTECT = 16  # written as a formula if a spreadsheet would change the text
    LONG = 32     # written as a formula if it is a number with more digits than a spreadsheet keeps
    FOR_SPREADSHEETS = 52  # GUARD, PROTECT, LONG

# What a byte of text may be to a spreadsheet; bits of `meanings`. server/query/spreadsheets.py says why.
cdef enum:
    SIGN = 1       # begins a formula, if more bytes of a full-width sign follow in one case
    SEPARATOR = 2  # a cell may begin after it
    QUOTE = 4
    DIGIT = 8
    LETTER = 16
    BETWEEN = 32   # stands between the digits of a number, a date or a time

# The same numbers in server/query/spreadsheets.py.
cdef enum:
    LONGEST_PROTECTED = 255
    LONG_DIGITS = 16

# Bytes of a word, for searches that look at a word at a time.
cdef enum:
    WORD = 8
    HALF_WORD = 4

# What `added_bytes` returns for text that is written as a formula: the sign, and two quotes. No number of apostrophes.
cdef enum:
    AS_FORMULA = -3

# How names in dates begin, three letters each. The same names in server/query/spreadsheets.py.
cdef const char *NAMES_IN_DATES = (
    b"janfebmaraprmayjunjulaugsepoctnovdecmrzmaioktdezfevavrjuiaoueneabragodicgenmaggiulugsetottoutmrtmei"
    b"montuewedthufrisatsun"
)
cdef uint8_t meanings[256]

cdef uint64_t ONES = 0x0101010101010101
cdef uint64_t HIGHS = 0x8080808080808080


cdef void set_meanings() noexcept:
    cdef int byte
    for byte in range(256):
        meanings[byte] = LETTER if byte >= 128 or 97 <= byte | 32 <= 122 else DIGIT if 48 <= byte <= 57 else 0
    meanings[0xEF] |= SIGN
    meanings[34] |= QUOTE
    for byte in b"=+-@":
        meanings[byte] |= SIGN
    for byte in b",;|\t\r\n":
        meanings[byte] |= SEPARATOR
    for byte in b" .,:/+-()%'$":
        meanings[byte] |= BETWEEN


set_meanings()


def bind(addresses):
    """Set the addresses of OpenSSL's functions, by name; without them no connection may use TLS. Call this once."""
    global SSL_read, SSL_write, SSL_get_error, ERR_clear_error
    if addresses:
        SSL_read = <read_function><size_t>addresses["SSL_read"]
        SSL_write = <write_function><size_t>addresses["SSL_write"]
        SSL_get_error = <error_function><size_t>addresses["SSL_get_error"]
        ERR_clear_error = <clear_function><size_t>addresses["ERR_clear_error"]


cdef inline uint64_t zero_bytes(uint64_t word) noexcept nogil:
    """Return non-zero if any byte of the word is zero: the high bit of that byte, and perhaps of bytes above it."""
    return (word - ONES) & ~word & HIGHS


cdef inline bint breaks_lines(const uint8_t *value, Py_ssize_t length) noexcept nogil:
    """Return whether the value holds LF or CR. Look at eight bytes at a time, as long as there are so many."""
    cdef uint64_t word
    cdef Py_ssize_t i = 0
    while length - i >= WORD:
        memcpy(&word, value + i, WORD)
        if zero_bytes(word ^ (ONES * 10)) | zero_bytes(word ^ (ONES * 13)):
            return True
        i += WORD
    while i < length:
        if value[i] == 10 or value[i] == 13:
            return True
        i += 1
    return False


cdef inline int32_t int_at(const uint8_t *at) noexcept nogil:
    """Return the 32-bit number in network byte order."""
    return <int32_t>(<uint32_t>at[0] << 24 | <uint32_t>at[1] << 16 | <uint32_t>at[2] << 8 | at[3])


cdef inline int count_at(const uint8_t *at) noexcept nogil:
    """Return the 16-bit number in network byte order."""
    return at[0] << 8 | at[1]


cdef class Encoder:
    """Read the rows of portals and encode them in COPY's CSV format: a `postgres.reader.RowReader`.

    delimiter, quote: one ASCII byte each. null: the bytes for NULL. eol: the end of a line. kinds_of: maps a
    RowDescription to the kinds of its columns, one byte each, or to None if it is malformed; all statements of an
    encoder have the same columns.
    """

    cdef uint8_t delimiter
    cdef uint8_t quote
    cdef uint8_t special[256]
    cdef uint64_t delimiters
    cdef uint64_t quotes
    # Whether delimiter and quote are among the bytes that `may_be_split` looks for.
    cdef bint usual
    cdef bytes null
    cdef const char *null_at
    cdef Py_ssize_t null_length
    cdef bytes eol
    cdef const char *eol_at
    cdef Py_ssize_t eol_length
    cdef object kinds_of
    cdef bytes kinds
    # The first byte of `kinds`: one byte for each column.
    cdef const uint8_t *kinds_at
    # -1 as long as no RowDescription has come.
    cdef int columns
    cdef Py_ssize_t last_size
    # While a call runs: the bytes object that it fills (an owned reference), its first byte, the next byte to write
    # and the byte after its last.
    cdef PyObject *buffer
    cdef char *first
    cdef char *out
    cdef char *end
    # The rows that end in it.
    cdef Py_ssize_t rows
    # Whether a row that does not fit the receive buffer has to wait for `read`.
    cdef bint whole_rows
    # The receive buffer, and the bytes in it that were not taken: from `low` up to `high`.
    cdef uint8_t *inbox
    cdef Py_ssize_t low
    cdef Py_ssize_t high
    # The current pause, and the bytes received since the last one.
    cdef int nap
    cdef Py_ssize_t since_nap
    # Of a row that does not fit the receive buffer: whether one was begun, its next field, and how many bytes of its
    # message are still to come.
    cdef bint in_row
    cdef int current
    cdef Py_ssize_t row_left
    # Of its current field: bytes still to come, -1 without one; and where its value begins in the output.
    cdef Py_ssize_t value_left
    cdef Py_ssize_t value_at
    # Of a value of more than LARGE_BYTES: whether the current one is such, its length, what is done with it (DECIDING, …),
    # and whether it is written in quotes.
    cdef bint large
    cdef Py_ssize_t size
    cdef int stage
    cdef bint quoted
    # What is held of it until then: its memory, of so many bytes, and the bytes in it that are not written yet, from
    # `held_at` up to `held_end`. `may_hold`: whether it may be held whole.
    cdef uint8_t *held
    cdef Py_ssize_t capacity
    cdef Py_ssize_t held_at
    cdef Py_ssize_t held_end
    cdef bint may_hold
    # For apostrophes in it: whether a cell may begin at its next byte, whether that is its first one, and how many
    # bytes of what may be a full-width sign are not written yet.
    cdef bint begins
    cdef bint starts
    cdef int sign_bytes
    # Of a message that is no row: its type, and how many bytes of it are still to come, -1 without one.
    cdef uint8_t control
    cdef Py_ssize_t control_left
    # What is kept of it.
    cdef object kept
    # Not yet sent, and the unit that is sent when a portal is suspended.
    cdef bytes unsent
    cdef bint sends
    cdef bytes more
    cdef bint batches
    cdef int unanswered
    cdef bint suspended
    cdef bint failed
    cdef bint broken
    cdef object error

    def __cinit__(self, bytes delimiter, bytes quote, bytes null, bytes eol, object kinds_of):
        if len(delimiter) != 1 or len(quote) != 1:
            raise ValueError("delimiter and quote are one byte each")
        cdef int i
        self.delimiter = delimiter[0]
        self.quote = quote[0]
        self.delimiters = ONES * self.delimiter
        self.quotes = ONES * self.quote
        self.usual = self.quote == 34 and self.delimiter in b",;|\t"
        self.null = null
        self.eol = eol
        self.kinds_of = kinds_of
        self.kinds = None
        self.kinds_at = NULL
        self.columns = -1
        self.null_at = PyBytes_AS_STRING(null)
        self.null_length = len(null)
        self.eol_at = PyBytes_AS_STRING(eol)
        self.eol_length = len(eol)
        self.last_size = 0
        self.nap = NAP
        self.since_nap = NAP_BYTES
        self.buffer = NULL
        self.value_left = -1
        self.held = NULL
        self.control_left = -1
        self.unsent = b""
        self.more = b""
        for i in range(256):
            self.special[i] = 0
        for i in (self.delimiter, self.quote, 10, 13):
            self.special[i] = 1
        self.inbox = <uint8_t *>malloc(RECEIVE_BYTES)
        if self.inbox == NULL:
            raise MemoryError

    def __dealloc__(self):
        self.drop()
        free(self.held)
        free(self.inbox)

    def start(self, bytes messages, int units, bytes more):
        """Send these messages in the next call that reads: see `RowReader.start`."""
        self.unsent += messages
        self.sends = True
        self.unanswered += units
        self.more = more
        self.batches = bool(more)

    def read(self, wire, int wake, Py_ssize_t most, int patience):
        """Return (lines, number of rows, how the call ended): see `RowReader.read`. Raise MemoryError."""
        cdef int descriptor = wire.descriptor
        cdef size_t ssl = wire.ssl
        cdef int ended
        if ssl and SSL_read == NULL:
            raise ValueError("the functions of OpenSSL are not bound")
        if self.broken:
            return b"", 0, LOST
        self.begin()
        self.whole_rows = False
        try:
            with nogil:
                ended = self.read_on(descriptor, <void *>ssl, wake, most, patience)
        except BaseException:
            self.broken = True
            self.drop()
            raise
        return self.result(ended)

    def read_arrived(self, wire, Py_ssize_t most):
        """Return as `read` does, or None if it has to go on: see `RowReader.read_arrived`. Raise MemoryError."""
        cdef int descriptor = wire.descriptor
        cdef size_t ssl = wire.ssl
        cdef int ended
        cdef short wanted
        if ssl and SSL_read == NULL:
            raise ValueError("the functions of OpenSSL are not bound")
        if self.broken:
            return b"", 0, LOST
        self.begin()
        self.whole_rows = True
        try:
            ended = self.take(most)
            # A full receive buffer holds the beginning of a large row.
            if ended == INCOMPLETE and not self.in_row and self.high - self.low < RECEIVE_BYTES:
                if self.receive_now(descriptor, <void *>ssl, &wanted) < 0:
                    ended = LOST
                else:
                    ended = self.take(most)
        except BaseException:
            self.broken = True
            self.drop()
            raise
        return None if ended == INCOMPLETE else self.result(ended)

    @property
    def wanted(self):
        """The bytes of the value that a read after ROOM has to hold: see `RowReader.wanted`."""
        if self.large and self.stage == DECIDING and self.capacity and self.held_end == self.capacity:
            return self.size
        return 0

    @property
    def column(self):
        """The number of the column of that value: see `RowReader.column`."""
        return self.current

    @property
    def held_bytes(self):
        """How many bytes of a value are held since `hold`: see `RowReader.held_bytes`."""
        return self.capacity if self.capacity > HELD_BYTES else 0

    def hold(self):
        """Let the next read hold the value: see `RowReader.hold`."""
        self.may_hold = True

    def pass_over(self):
        """Let the next read write the value as if it needed no quotes: see `RowReader.pass_over`."""
        self.stage = WRITING

    def close(self):
        """Give the memory of a value back: see `RowReader.close`."""
        if self.value_left >= 0:
            self.broken = True
        free(self.held)
        self.held = NULL
        self.capacity = self.held_at = self.held_end = 0

    def failure(self):
        """Return the body of the first ErrorResponse, or its beginning; None if there was none."""
        return self.error

    @property
    def clean(self):
        """Whether every unit was answered and no byte is left over, in either direction."""
        return (
            not (self.broken or self.unanswered or self.in_row or self.unsent)
            and self.control_left < 0
            and self.low == self.high
        )

    cdef int read_on(self, int descriptor, void *ssl, int wake, Py_ssize_t most, int patience) except -1 nogil:
        cdef int ended
        while True:
            ended = self.take(most)
            if ended == INCOMPLETE:
                ended = self.receive(descriptor, ssl, wake, patience)
            if ended != INCOMPLETE:
                return ended

    # --- The socket. ---

    cdef int receive(self, int descriptor, void *ssl, int wake, int patience) except -1 nogil:
        """Send and receive what is possible, and wait until something was received. Return INCOMPLETE then.

        Otherwise return how the read ends.
        """
        cdef pollfd watched[2]
        cdef Py_ssize_t count
        cdef int ready, wait
        cdef short wanted
        # A value that was begun must stay in the buffer, unless it is written in parts.
        cdef bint lingers = self.out > self.first and (self.value_left < 0 or self.large)
        cdef bint naps = self.out - self.first + self.last_size >= FLOW_BYTES
        watched[0].fd = descriptor
        watched[1].fd = wake
        watched[1].events = POLLIN
        while True:
            count = self.receive_now(descriptor, ssl, &wanted)
            if count < 0:
                return LOST
            if count == 0 and naps:
                naps = False
                self.nap = min(2 * self.nap, MOST_NAP) if self.since_nap < NAP_BYTES else max(self.nap // 2, NAP)
                self.since_nap = 0
                usleep(self.nap)
                continue
            if count > 0:
                if not self.in_row:
                    return INCOMPLETE
                wait = 0  # so much may follow that somebody should be able to stop it
            else:
                wait = LINGER if lingers else patience
            watched[0].events = wanted
            watched[0].revents = watched[1].revents = 0
            ready = poll(watched, 2, wait)
            if ready < 0 and errno != EINTR:
                return LOST
            if ready > 0 and watched[1].revents:
                return WOKEN
            if count > 0:
                return INCOMPLETE
            if ready == 0:
                return MORE if lingers else TIMED_OUT

    cdef Py_ssize_t receive_now(self, int descriptor, void *ssl, short *wanted) except? -2 nogil:
        """Send and receive what is possible without waiting. Return how many bytes were received, -1 if LOST.

        wanted: what to poll for before the next call.
        """
        cdef Py_ssize_t count
        cdef int error
        cdef bint closed
        if self.low:
            memmove(self.inbox, self.inbox + self.low, self.high - self.low)
            self.high -= self.low
            self.low = 0
        wanted[0] = POLLIN
        # The server may have said why, before it closed the connection.
        closed = self.sends and not self.flush(descriptor, ssl, wanted)
        if ssl == NULL:
            count = recv(descriptor, self.inbox + self.high, RECEIVE_BYTES - self.high, 0)
            if count == 0 or (count < 0 and errno != EAGAIN and errno != EINTR):
                return -1
        else:
            # It is right to poll after this: a call that finds nothing has emptied OpenSSL's own buffer.
            ERR_clear_error()
            count = SSL_read(ssl, self.inbox + self.high, <int>(RECEIVE_BYTES - self.high))
            if count <= 0:
                error = SSL_get_error(ssl, <int>count)
                if error == SSL_ERROR_WANT_WRITE:
                    wanted[0] |= POLLOUT
                elif error != SSL_ERROR_WANT_READ:
                    return -1
        if count > 0:
            self.high += count
            self.since_nap += count
            return count
        return -1 if closed else 0

    cdef bint flush(self, int descriptor, void *ssl, short *wanted) except -1 nogil:
        """Send what is unsent as far as possible. Return whether the connection is still there."""
        with gil:
            while self.unsent:
                if ssl == NULL:
                    count = send(descriptor, PyBytes_AS_STRING(self.unsent), len(self.unsent), MSG_NOSIGNAL)
                    if count < 0:
                        if errno == EINTR:
                            continue
                        if errno != EAGAIN:
                            return False
                        wanted[0] |= POLLOUT
                        return True
                else:
                    ERR_clear_error()
                    count = SSL_write(ssl, PyBytes_AS_STRING(self.unsent), <int>len(self.unsent))
                    if count <= 0:
                        error = SSL_get_error(ssl, <int>count)
                        if error == SSL_ERROR_WANT_WRITE:
                            wanted[0] |= POLLOUT
                        return error in (SSL_ERROR_WANT_READ, SSL_ERROR_WANT_WRITE)
                self.unsent = self.unsent[count:]
            self.sends = False
        return True

    # --- Messages. ---

    cdef int take(self, Py_ssize_t most) except -1 nogil:
        """Take the messages that have arrived. Return how the read ends, or INCOMPLETE."""
        cdef Py_ssize_t length
        cdef const uint8_t *at
        cdef int ended
        while True:
            if self.in_row:
                ended = self.take_fields(most)
                if ended != END:
                    return ended
                if self.out - self.first >= most:
                    return MORE
                continue
            if self.control_left >= 0:
                ended = self.take_control()
                if ended != MORE:
                    return ended
                continue
            if self.high - self.low < 5:
                return INCOMPLETE
            at = self.inbox + self.low
            length = int_at(at + 1)
            if length < 4:
                return LOST
            if at[0] != 68:  # D
                self.control = at[0]
                self.control_left = length - 4
                self.low += 5
                if not expected(self.control, self.control_left):
                    return LOST
                continue
            if length < 6 or self.columns < 0:
                return LOST
            if self.high - self.low > length:
                if self.put_row(at + 5, length - 4) < 0:
                    return LOST
                self.low += length + 1
                self.rows += 1
                if self.out - self.first >= most:
                    return MORE
            elif length < RECEIVE_BYTES:
                return INCOMPLETE
            elif self.high - self.low < 7 or self.whole_rows:
                return INCOMPLETE
            else:
                if count_at(at + 5) != self.columns:
                    return LOST
                self.in_row = True
                self.current = 0
                self.row_left = length - 6
                self.low += 7

    cdef int take_control(self) except -1 nogil:
        """Take what has arrived of a message that is no row. Return MORE if it is complete; else as `take` does."""
        cdef Py_ssize_t count = min(self.high - self.low, self.control_left)
        cdef bint keeps = self.control == 84 or self.control == 69  # T, E
        if keeps:
            with gil:
                if self.kept is None:
                    self.kept = bytearray()
                self.kept += (<char *>self.inbox + self.low)[: min(count, KEPT_BYTES - <Py_ssize_t>len(self.kept))]
        self.low += count
        self.control_left -= count
        if self.control_left:
            return INCOMPLETE
        self.control_left = -1
        if keeps:
            with gil:
                return self.keep()
        elif self.control == 115:  # s: PortalSuspended
            return self.on_suspended()
        elif self.control == 90:  # Z: ReadyForQuery
            return self.on_ready()
        return MORE

    cdef int keep(self) except -1:
        """Take an ErrorResponse or a RowDescription. Return MORE, or LOST if it is malformed."""
        kept, self.kept = bytes(self.kept), None
        if self.control == 69:
            self.failed = True
            if self.error is None:
                self.error = kept
            return MORE
        kinds = self.kinds_of(kept)
        if kinds is None:
            return LOST
        if self.kinds is not None and self.kinds != kinds:
            raise ValueError("all statements of an encoder have the same columns")
        self.kinds = kinds
        self.kinds_at = <const uint8_t *>PyBytes_AS_STRING(self.kinds)
        self.columns = <int>len(kinds)
        return MORE

    cdef int on_suspended(self) except -1 nogil:
        if not self.batches:
            return LOST
        if self.failed:
            return MORE
        self.suspended = True
        with gil:
            while self.unanswered < UNITS_AHEAD:
                self.unsent += self.more
                self.sends = True
                self.unanswered += 1
        return MORE

    cdef int on_ready(self) except -1 nogil:
        cdef bint suspended = self.suspended
        if self.unanswered == 0:
            return LOST
        self.unanswered -= 1
        self.suspended = False
        if self.failed:
            return MORE if self.unanswered else FAILED
        # After the last row the units ahead find a portal without rows.
        return MORE if suspended or (self.batches and self.unanswered) else END

    # --- Rows. ---

    cdef int put_row(self, const uint8_t *at, Py_ssize_t length) except? -2 nogil:
        """Write the row of a DataRow that has arrived whole. Return -1 if it is malformed.

        at, length: the body of the message.
        """
        cdef const uint8_t *end = at + length
        cdef const uint8_t *kinds = self.kinds_at
        cdef int column
        cdef Py_ssize_t size
        # The most bytes that the line can need: each value twice, and beside it a delimiter, two quotes and an
        # apostrophe, or the bytes for NULL.
        cdef Py_ssize_t room = 2 * length + self.columns * (4 + self.null_length) + self.eol_length
        if count_at(at) != self.columns:
            return -1
        if self.end - self.out < room:
            self.grow(room)
        cdef char *out = self.out
        at += 2
        for column in range(self.columns):
            if end - at < 4:
                return -1
            size = int_at(at)
            at += 4
            if column:
                out[0] = <char>self.delimiter
                out += 1
            if size < 0:
                if size != -1:
                    return -1
                memcpy(out, self.null_at, self.null_length)
                out += self.null_length
                continue
            if size > end - at:
                return -1
            if kinds[column] == PLAIN and size != self.null_length:
                memcpy(out, at, size)
                out += size
            else:
                out = self.put_value(out, at, size, kinds[column])
            at += size
        if at != end:
            return -1
        memcpy(out, self.eol_at, self.eol_length)
        self.out = out + self.eol_length
        return 0

    cdef inline char *put_value(self, char *out, const uint8_t *value, Py_ssize_t length, uint8_t kind) noexcept nogil:
        """Write a value that is not NULL. Return the end of what was written."""
        cdef Py_ssize_t added
        if kind & FOR_SPREADSHEETS:
            if kind == SCAN | GUARD and self.is_harmless(value, length):
                memcpy(out, value, length)
                return out + length
            added = added_bytes(value, length, kind)
            if added:
                return self.put_changed(out, value, length, kind, added)
        if self.is_quoted(value, length, kind):
            return self.put_quoted(out, value, length)
        if kind & JSON:
            return self.put_json(out, value, length)
        memcpy(out, value, length)
        return out + length

    cdef inline bint is_harmless(self, const uint8_t *value, Py_ssize_t length) noexcept nogil:
        """Return whether one search shows that the text needs neither quotes nor an apostrophe, as most do not."""
        return (
            self.usual
            and length > 0
            and length != self.null_length
            and value[0] != 92
            and not meanings[value[0]] & SIGN
            and not may_be_split(value, length)
        )

    cdef char *put_changed(
        self, char *out, const uint8_t *value, Py_ssize_t length, uint8_t kind, Py_ssize_t added
    ) noexcept nogil:
        """Write a value that is changed for spreadsheets. added: as `added_bytes` returns it."""
        length = put_text(<uint8_t *>out, value, length, added)
        if self.is_quoted(<uint8_t *>out, length, kind):
            length = self.quote_in_place(<uint8_t *>out, length, self.quotes_in(<uint8_t *>out, length))
        return out + length

    cdef inline bint is_quoted(self, const uint8_t *value, Py_ssize_t length, uint8_t kind) noexcept nogil:
        """Return whether the value is written in quotes. value: as it stands in the file."""
        # A value that equals the bytes for NULL is quoted.
        if length == self.null_length and memcmp(value, self.null_at, length) == 0:
            return True
        if kind & JSON or kind == PLAIN:
            return False
        return (
            kind & ALWAYS
            or self.needs_quotes(value, length)
            # COPY quotes a lone \. so that older servers do not read it as the end of the data.
            or (self.columns == 1 and length == 2 and value[0] == 92 and value[1] == 46)
        )

    cdef int take_fields(self, Py_ssize_t most) except -1 nogil:
        """Write the fields of a large row as they arrive. Return END with its last byte; else as `take` does.

        The read may end between two fields, or within a value of more than LARGE_BYTES. The next read continues there.
        """
        cdef Py_ssize_t size
        cdef int ended
        while True:
            if self.value_left >= 0 and self.large:
                ended = self.take_parts(most)
                if ended != END:
                    return ended
                self.value_left = -1
                self.large = False
                self.current += 1
            elif self.value_left >= 0:
                size = min(self.high - self.low, self.value_left)
                self.append(<const char *>self.inbox + self.low, size)
                self.low += size
                self.row_left -= size
                self.value_left -= size
                if self.value_left:
                    return INCOMPLETE
                self.value_left = -1
                self.finish_value()
                self.current += 1
            if self.current == self.columns:
                if self.row_left:
                    return LOST
                self.append(self.eol_at, self.eol_length)
                self.in_row = False
                self.rows += 1
                return END
            if self.out - self.first >= most:
                return MORE
            if self.row_left < 4:
                return LOST
            if self.high - self.low < 4:
                return INCOMPLETE
            size = int_at(self.inbox + self.low)
            self.low += 4
            self.row_left -= 4
            if size < -1 or size > self.row_left:
                return LOST
            if self.current:
                self.append(<const char *>&self.delimiter, 1)
            if size == -1:
                self.append(self.null_at, self.null_length)
                self.current += 1
            else:
                self.value_left = size
                self.value_at = self.out - self.first
                # A shorter value may be what stands for NULL.
                if size > LARGE_BYTES and size > self.null_length:
                    self.begin_large(size)

    cdef int append(self, const char *data, Py_ssize_t length) except -1 nogil:
        if self.end - self.out < length:
            self.grow(length)
        memcpy(self.out, data, length)
        self.out += length
        return 0

    cdef int finish_value(self) except -1 nogil:
        """Make the field out of the value that was copied to the end of the output as it arrived."""
        cdef Py_ssize_t length = self.out - self.first - self.value_at
        cdef uint8_t kind = self.kinds_at[self.current]
        cdef uint8_t *value = <uint8_t *>self.first + self.value_at
        cdef Py_ssize_t added = 0
        cdef Py_ssize_t extra
        if kind & FOR_SPREADSHEETS:
            added = added_bytes(value, length, kind)
        if added:
            extra = 3 if added == AS_FORMULA else added
            value = self.room_after_value(extra)
            memmove(value + extra, value, length)
            length = put_text(value, value + extra, length, added)
            self.out += extra
        if self.is_quoted(value, length, kind):
            extra = self.quotes_in(value, length)
            value = self.room_after_value(2 + extra)
            self.out = <char *>value + self.quote_in_place(value, length, extra)
        elif kind & JSON:
            self.put_json(<char *>value, value, length)
        return 0

    # --- Values of more than LARGE_BYTES. ---

    cdef void begin_large(self, Py_ssize_t size) noexcept nogil:
        cdef uint8_t kind = self.kinds_at[self.current]
        self.large = True
        self.size = size
        # Such a value is neither what stands for NULL nor a lone \. mark, and no spreadsheet takes it for a number.
        if kind & JSON or kind == PLAIN:
            self.stage = WRITING
        else:
            self.stage = OPENING if kind & ALWAYS else DECIDING
        self.quoted = self.stage == OPENING
        self.held_at = self.held_end = 0
        self.may_hold = False
        self.starts = kind & GUARD
        self.begins = False
        self.sign_bytes = 0

    cdef int take_parts(self, Py_ssize_t most) except -1 nogil:
        """Write a large value in parts as soon as it is known whether it needs quotes. Return END with its last byte.

        Otherwise return as `take` does.
        """
        cdef Py_ssize_t part
        cdef int ended
        while True:
            if self.out - self.first >= most:
                return MORE
            if self.stage == DECIDING:
                ended = self.decide()
                if ended != END:
                    return ended
            elif self.stage == OPENING:
                self.append(<const char *>&self.quote, 1)
                self.stage = WRITING
            elif self.held_at < self.held_end:
                part = min(self.held_end - self.held_at, PART_BYTES)
                self.put_part(self.held + self.held_at, part)
                self.held_at += part
                if self.held_at == self.held_end:
                    self.release()
            elif self.value_left:
                part = self.arrived()
                if part == 0:
                    return INCOMPLETE
                self.put_part(self.inbox + self.low, part)
                self.take_part(part)
            else:
                self.finish_parts()
                return END

    cdef int decide(self) except -1 nogil:
        """Find out whether the large value needs quotes, and hold what has arrived of it until then.

        Return END once it is known; else ROOM or INCOMPLETE.
        """
        cdef Py_ssize_t part
        while self.value_left:
            part = self.arrived()
            if part == 0:
                return INCOMPLETE
            if self.needs_quotes(self.inbox + self.low, part):
                self.stage = OPENING
                self.quoted = True
                return END
            if self.held_end == self.capacity:
                if self.capacity and not self.may_hold:
                    return ROOM
                self.allocate(self.size if self.capacity else HELD_BYTES)
            part = min(part, self.capacity - self.held_end)
            memcpy(self.held + self.held_end, self.inbox + self.low, part)
            self.held_end += part
            self.take_part(part)
        self.stage = WRITING
        return END

    cdef inline Py_ssize_t arrived(self) noexcept nogil:
        """Return how many bytes of the large value are in the receive buffer."""
        return min(self.high - self.low, self.value_left)

    cdef void take_part(self, Py_ssize_t part) noexcept nogil:
        """Count this part of a large value as taken from the receive buffer."""
        self.low += part
        self.row_left -= part
        self.value_left -= part

    cdef int allocate(self, Py_ssize_t capacity) except -1 nogil:
        """Make the memory of the value that is held so large."""
        cdef void *memory = realloc(self.held, capacity)
        if memory == NULL:
            with gil:
                raise MemoryError
        self.held = <uint8_t *>memory
        self.capacity = capacity
        return 0

    cdef void release(self) noexcept nogil:
        """Hold nothing of a value any more. Give memory beyond HELD_BYTES back."""
        self.held_at = self.held_end = 0
        if self.capacity > HELD_BYTES:
            free(self.held)
            self.held = NULL
            self.capacity = 0

    cdef int put_part(self, const uint8_t *value, Py_ssize_t length) except -1 nogil:
        """Write the next part of a large value."""
        cdef uint8_t kind = self.kinds_at[self.current]
        # Each byte may need a second one: its quote, or an apostrophe. Before them stands what may be a sign.
        cdef Py_ssize_t needed = 2 * length + 2
        cdef Py_ssize_t i
        cdef char *out
        if self.end - self.out < needed:
            self.grow(needed)
        if kind & GUARD:
            self.put_guarded(value, length)
        elif self.quoted:
            out = self.out
            for i in range(length):
                if value[i] == self.quote:
                    out[0] = <char>self.quote
                    out += 1
                out[0] = <char>value[i]
                out += 1
            self.out = out
        elif kind & JSON:
            self.out = self.put_json(self.out, value, length)
        else:
            memcpy(self.out, value, length)
            self.out += length
        return 0

    cdef void put_guarded(self, const uint8_t *value, Py_ssize_t length) noexcept nogil:
        """Write a part of a text with an apostrophe before each beginning of a formula, as `put_text` does."""
        cdef char *out = self.out
        cdef Py_ssize_t i
        cdef uint8_t byte
        for i in range(length):
            byte = value[i]
            if self.sign_bytes == 1 and byte == 0xBC:
                self.sign_bytes = 2
                continue
            if self.sign_bytes:
                if self.sign_bytes == 2 and (byte == 0x8B or byte == 0x8D or byte == 0x9D or byte == 0xA0):
                    out[0] = 39
                    out += 1
                out = self.put_sign_bytes(out)
            elif self.starts or self.begins:
                if byte == 0xEF:
                    self.sign_bytes = 1
                    self.starts = self.begins = False
                    continue
                if meanings[byte] & SIGN or (self.starts and (byte == 9 or byte == 10 or byte == 13)):
                    out[0] = 39
                    out += 1
                self.starts = False
            self.begins = begins_cell(byte, self.begins)
            if self.quoted and byte == self.quote:
                out[0] = <char>byte
                out += 1
            out[0] = <char>byte
            out += 1
        self.out = out

    cdef char *put_sign_bytes(self, char *out) noexcept nogil:
        """Write what may have been the beginning of a full-width sign. Return the end of what was written."""
        if self.sign_bytes:
            out[0] = <char>0xEF
            out += 1
        if self.sign_bytes == 2:
            out[0] = <char>0xBC
            out += 1
        self.sign_bytes = 0
        return out

    cdef int finish_parts(self) except -1 nogil:
        """Write what is left to write after the last byte of a large value."""
        cdef Py_ssize_t needed = 3
        if self.end - self.out < needed:
            self.grow(needed)
        self.out = self.put_sign_bytes(self.out)
        if self.quoted:
            self.out[0] = <char>self.quote
            self.out += 1
        return 0

    cdef uint8_t *room_after_value(self, Py_ssize_t extra) except NULL nogil:
        """Make room for `extra` bytes after the value at the end of the output. Return where the value is then."""
        if self.end - self.out < extra:
            self.grow(extra)
        return <uint8_t *>self.first + self.value_at

    cdef Py_ssize_t quotes_in(self, const uint8_t *value, Py_ssize_t length) noexcept nogil:
        cdef Py_ssize_t count = 0
        cdef Py_ssize_t i
        for i in range(length):
            count += value[i] == self.quote
        return count

    cdef Py_ssize_t quote_in_place(self, uint8_t *value, Py_ssize_t length, Py_ssize_t quotes) noexcept nogil:
        """Put the value into quotes where it is, and return its length then. quotes: how many are in it."""
        cdef Py_ssize_t quoted = length + 2 + quotes
        # From the end to the beginning, so that no byte is overwritten before it was moved.
        cdef uint8_t *out = value + quoted - 1
        cdef Py_ssize_t i
        out[0] = self.quote
        for i in range(length - 1, -1, -1):
            out -= 1
            out[0] = value[i]
            if out[0] == self.quote:
                out -= 1
                out[0] = self.quote
        value[0] = self.quote
        return quoted

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

    cdef inline char *put_quoted(self, char *out, const uint8_t *value, Py_ssize_t length) noexcept nogil:
        cdef Py_ssize_t i
        out[0] = <char>self.quote
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
        memmove(out, value, length)
        if breaks_lines(<const uint8_t *>out, length):
            for i in range(length):
                if out[i] == 10 or out[i] == 13:
                    out[i] = 32
        return out + length

    # --- The output. ---

    cdef int begin(self) except -1:
        if self.buffer != NULL:  # `read_arrived` has left it
            return 0
        cdef Py_ssize_t capacity = self.last_size + self.last_size // 8 + 4096
        self.buffer = <PyObject *>PyBytes_FromStringAndSize_owned(capacity)
        self.first = PyBytes_AS_STRING(<object>self.buffer)
        self.out = self.first
        self.end = self.first + capacity
        self.rows = 0
        return 0

    cdef object result(self, int ended):
        # A value that is not large is written in one read: what has arrived of it goes away with the buffer.
        if ended == LOST or (self.value_left >= 0 and not self.large):
            self.broken = True
        return self.taken(), self.rows, ended

    cdef void drop(self):
        if self.buffer != NULL:
            take(self.buffer)
            self.buffer = NULL

    cdef object taken(self):
        cdef Py_ssize_t used = self.out - self.first
        cdef PyObject *buffer = self.buffer
        self.buffer = NULL
        self.last_size = used
        _PyBytes_Resize(&buffer, used)
        return take(buffer)

    cdef int grow(self, Py_ssize_t room) except -1 nogil:
        """Make the buffer large enough for `room` more bytes."""
        cdef Py_ssize_t used = self.out - self.first
        cdef Py_ssize_t capacity = (used + room) + (used + room) // 2
        with gil:
            _PyBytes_Resize(&self.buffer, capacity)  # raises MemoryError and clears the pointer
            self.first = PyBytes_AS_STRING(<object>self.buffer)
        self.out = self.first + used
        self.end = self.first + capacity
        return 0


cdef inline bint expected(uint8_t kind, Py_ssize_t length) noexcept nogil:
    """Return whether a message may have this type, and a body of this length. Rows are not concerned."""
    if kind == 90:  # Z: ReadyForQuery
        return length == 1
    # 1, 2, 3: ParseComplete, BindComplete, CloseComplete; I: EmptyQueryResponse; n: NoData; s: PortalSuspended
    if kind == 49 or kind == 50 or kind == 51 or kind == 73 or kind == 110 or kind == 115:
        return length == 0
    # A: notification; C: CommandComplete; E: error; N: notice; S: ParameterStatus; T: RowDescription; t: parameters
    return (
        kind == 65 or kind == 67 or kind == 69 or kind == 78 or kind == 83 or kind == 84 or kind == 116
    )


# --- Spreadsheets: the rules of server/query/spreadsheets.py. ---


cdef inline Py_ssize_t added_bytes(const uint8_t *value, Py_ssize_t length, uint8_t kind) noexcept nogil:
    """Return how many apostrophes go into the text, AS_FORMULA if it is written as one, or 0 if it stays as it is."""
    cdef bint first = False
    cdef Py_ssize_t within = 0
    if kind & GUARD and length:
        first = is_sign(value, length) or value[0] == 9 or value[0] == 10 or value[0] == 13
        within = signs_within(value, length) if may_be_split(value, length) else 0
    if kind & PROTECT and not within and is_changed(value, length):
        return AS_FORMULA
    if kind & LONG and is_long_number(value, length):
        return AS_FORMULA
    return first + within


cdef Py_ssize_t put_text(uint8_t *out, const uint8_t *value, Py_ssize_t length, Py_ssize_t added) noexcept nogil:
    """Write the text as a formula or with apostrophes. Return the length of what was written.

    added: as `added_bytes` returns it. The text may stand just as many bytes after `out` as are added.
    """
    cdef uint8_t *begin = out
    cdef uint8_t byte
    cdef Py_ssize_t i
    cdef Py_ssize_t left = added
    cdef bint begins = False
    if added == AS_FORMULA:
        out[0] = 61
        out[1] = 34
        memmove(out + 2, value, length)
        out[length + 2] = 34
        return length + 3
    if is_sign(value, length) or value[0] == 9 or value[0] == 10 or value[0] == 13:
        out[0] = 39
        out += 1
        left -= 1
    for i in range(length):
        if left and begins and is_sign(value + i, length - i):
            out[0] = 39
            out += 1
            left -= 1
        byte = value[i]
        begins = begins_cell(byte, begins)
        out[0] = byte
        out += 1
    return out - begin


cdef Py_ssize_t signs_within(const uint8_t *value, Py_ssize_t length) noexcept nogil:
    """Return how many formulas begin after a separator."""
    cdef Py_ssize_t count = 0
    cdef Py_ssize_t i
    cdef bint begins = False
    for i in range(length):
        if begins and is_sign(value + i, length - i):
            count += 1
        begins = begins_cell(value[i], begins)
    return count


cdef inline bint begins_cell(uint8_t byte, bint begins) noexcept nogil:
    """Return whether a cell may begin after this byte. begins: whether one may begin before it."""
    return meanings[byte] & SEPARATOR or (begins and meanings[byte] & QUOTE)


cdef inline bint is_sign(const uint8_t *at, Py_ssize_t length) noexcept nogil:
    """Return whether = + - @ stands here, or the full-width form of one. length: bytes of the text from here, not 0."""
    if not meanings[at[0]] & SIGN:
        return False
    return at[0] != 0xEF or (
        length > 2 and at[1] == 0xBC and (at[2] == 0x8B or at[2] == 0x8D or at[2] == 0x9D or at[2] == 0xA0)
    )


cdef inline bint splits_or_quotes(uint64_t word) noexcept nogil:
    """Return whether one of these bytes is , ; | the quote or a control character, of which some are separators."""
    return (
        zero_bytes(word ^ (ONES * 34))
        | zero_bytes(word ^ (ONES * 44))
        | zero_bytes(word ^ (ONES * 59))
        | zero_bytes(word ^ (ONES * 124))
        | ((word - ONES * 14) & ~word & HIGHS)
    ) != 0


cdef inline bint may_be_split(const uint8_t *value, Py_ssize_t length) noexcept nogil:
    """Return whether the text may hold a separator or a quote. Look at eight bytes at a time; the last may overlap."""
    cdef uint64_t word
    cdef uint32_t beginning, ending
    cdef Py_ssize_t i = 0
    if length < HALF_WORD:
        while i < length:
            if meanings[value[i]] & (SEPARATOR | QUOTE):
                return True
            i += 1
        return False
    if length < WORD:
        memcpy(&beginning, value, HALF_WORD)
        memcpy(&ending, value + length - HALF_WORD, HALF_WORD)
        return splits_or_quotes(<uint64_t>ending << 32 | beginning)
    while True:
        memcpy(&word, value + i, WORD)
        if splits_or_quotes(word):
            return True
        i += WORD
        if i >= length:
            return False
        i = min(i, length - WORD)


cdef bint is_changed(const uint8_t *value, Py_ssize_t length) noexcept nogil:
    """Return whether a spreadsheet may take the text for a number, a date, a time or a truth value."""
    cdef bint digits = False
    cdef bint ascii
    cdef Py_ssize_t i = 0
    cdef Py_ssize_t start
    if length > LONGEST_PROTECTED:
        return False
    while i < length:
        if meanings[value[i]] & LETTER:
            start = i
            ascii = True
            while i < length and meanings[value[i]] & LETTER:
                ascii = ascii and value[i] < 128
                i += 1
            if ascii and not may_be_in_a_date(value + start, i - start, digits):
                # Without a digit only a truth value is changed, which is a single word.
                return i == length and not start and is_truth_value(value, length)
        elif meanings[value[i]] & (DIGIT | BETWEEN):
            digits = digits or meanings[value[i]] & DIGIT
            i += 1
        else:
            return False
    return digits


cdef bint may_be_in_a_date(const uint8_t *word, Py_ssize_t length, bint after_digits) noexcept nogil:
    """Return whether the letters are such as stand in dates, times and numbers."""
    cdef uint8_t first = word[0] | 32
    cdef const char *name = NAMES_IN_DATES
    if length >= 3:
        while name[0]:
            if name[0] == first and name[1] == word[1] | 32 and name[2] == word[2] | 32:
                return True
            name += 3
        return False
    if not after_digits:
        return False
    if length == 2:
        return (first == 97 or first == 112) and word[1] | 32 == 109  # am, pm
    return first == 97 or first == 112 or first == 101 or first == 116 or first == 122  # a p e t z


cdef bint is_truth_value(const uint8_t *word, Py_ssize_t length) noexcept nogil:
    """Return whether the letters are "true" or "false", in any case."""
    cdef const char *name = b"true" if length == 4 else b"false"
    cdef Py_ssize_t i
    if length != 4 and length != 5:
        return False
    for i in range(length):
        if word[i] | 32 != name[i]:
            return False
    return True


cdef bint is_long_number(const uint8_t *value, Py_ssize_t length) noexcept nogil:
    """Return whether this is a whole number with more digits than a spreadsheet keeps."""
    cdef Py_ssize_t i = length > 0 and value[0] == 45
    if length - i < LONG_DIGITS or length > LONGEST_PROTECTED:
        return False
    while i < length:
        if not meanings[value[i]] & DIGIT:
            return False
        i += 1
    return True


cdef extern from *:
    """
    #define PyBytes_FromStringAndSize_owned(size) PyBytes_FromStringAndSize(NULL, (size))
    static inline PyObject *take(PyObject *owned) { return owned; }
    """
    PyObject *PyBytes_FromStringAndSize_owned(Py_ssize_t size) except NULL
    object take(PyObject *owned)
