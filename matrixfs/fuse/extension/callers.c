/*
 * Callers: who sent a request, and what becomes of set-id bits and capabilities.
 */
#include "extension.h"

#include <fcntl.h>
#include <sys/uio.h>
#include <unistd.h>

/*
 * FUSE_HANDLE_KILLPRIV_V2: the kernel leaves it to us to take away set-user-ID, set-group-ID and security.capability,
 * and so needn't ask for the latter before every write(2).  libfuse (3.14) knows neither that nor the flags of requests
 * that say whether the caller may keep set-id bits.  So the bit is put into its reply to INIT, on the way out, and the
 * flags are read here.
 */
#define INIT_KILLPRIV_V2 (1u << 28)
#define SETATTR_KILLS (1u << 11)
#define OPEN_KILLS (1u << 0)
#define WRITE_OF_PAGES (1u << 0)
#define WRITE_KILLS (1u << 2)
#define INIT_FLAGS 3 /* index of 32-bit words behind the header, in request and reply */
#define SETATTR_VALID 0
#define OPEN_FLAGS 1
#define CREATE_FLAGS 3
#define WRITE_FLAGS 5
#define WRITE_OPEN_FLAGS 8

typedef int (*custom_io_fn)(struct fuse_session *, const struct fuse_custom_io *, int);

static int wants_privileges = 1; /* see set_clears_privileges */
int mfs_is_init_reply;

/*
 * The request that libfuse was handed last.  pyfuse3 runs its handler in the same breath, up to the first checkpoint:
 * so long this is that handler's (py_caller).
 */
enum { LOSES, KEEPS, NOT_TOLD };

static struct {
	int set_id; /* of LOSES, KEEPS, NOT_TOLD: what happens to set-id bits */
	int of_pages, direct;
	uint32_t pid, gid;
} caller;

/*
 * Which request of a thread came last, by their number in this session: one that asks again has taken in what it was
 * answered before.  Not READ, WRITE and RELEASE, which the kernel may have kept back for a while, nor what comes from
 * another process namespace (pid 0).  One thread per place: of one that is pushed out nothing is known.
 */
#define SEEN_BITS 12

static struct {
	uint32_t pid;
	uint64_t number;
} seen[1u << SEEN_BITS];
static uint64_t requests;

static ssize_t write_reply(int fd, struct iovec *parts, int count, void *Py_UNUSED(userdata))
{
	const struct notify_header *header = parts[0].iov_base;

	if (mfs_is_init_reply && count > 1 && header->code == 0 && parts[1].iov_len > INIT_FLAGS * sizeof(uint32_t)) {
		((uint32_t *)parts[1].iov_base)[INIT_FLAGS] |= INIT_KILLPRIV_V2; /* on do_init's stack */
		mfs_negotiated.clears_privileges = 1;
	}
	return writev(fd, parts, count);
}

static ssize_t read_request(int fd, void *buffer, size_t length, void *Py_UNUSED(userdata))
{
	return read(fd, buffer, length);
}

/* Whether the reply to this INIT is to pass write_reply. */
int mfs_take_over_replies(struct fuse_session *se, const uint32_t *words, size_t length)
{
	static const struct fuse_custom_io io = {.writev = write_reply, .read = read_request};
	custom_io_fn set = (custom_io_fn)mfs_real("fuse_session_custom_io");

	return wants_privileges && set != NULL && se == mfs_session && length > INIT_FLAGS * sizeof(*words) &&
	       words[INIT_FLAGS] & INIT_KILLPRIV_V2 && set(se, &io, mfs_current_fd()) == 0;
}

static void note_asking(const struct request_header *header)
{
	if (header->pid == 0 || header->opcode == OPCODE_READ || header->opcode == OPCODE_WRITE ||
	    header->opcode == OPCODE_RELEASE)
		return;
	seen[header->pid % (1u << SEEN_BITS)].pid = header->pid;
	seen[header->pid % (1u << SEEN_BITS)].number = requests;
}

static int has_flag(const uint32_t *words, size_t length, size_t index, uint32_t flag)
{
	return length >= (index + 1) * sizeof(*words) && (words[index] & flag) != 0;
}

/* Keeps what libfuse doesn't pass on of a request; `length` is that of the words behind its header. */
void mfs_note_caller(const struct request_header *header, const uint32_t *words, size_t length)
{
	int loses = 0;

	caller.of_pages = caller.direct = 0;
	caller.pid = header->pid;
	requests++;
	note_asking(header);
	caller.gid = header->gid;
	switch (header->opcode) {
	case OPCODE_SETATTR: /* other kernels set the mode */
		loses = has_flag(words, length, SETATTR_VALID, SETATTR_KILLS);
		break;
	case OPCODE_WRITE: /* other kernels have set the mode, but around their pages they tell as here */
		loses = has_flag(words, length, WRITE_FLAGS, WRITE_KILLS);
		caller.of_pages = has_flag(words, length, WRITE_FLAGS, WRITE_OF_PAGES);
		caller.direct = has_flag(words, length, WRITE_OPEN_FLAGS, O_DIRECT);
		break;
	case OPCODE_OPEN:
	case OPCODE_CREATE:
		loses = has_flag(words, length, header->opcode == OPCODE_OPEN ? OPEN_FLAGS : CREATE_FLAGS, OPEN_KILLS);
		caller.set_id = !mfs_negotiated.clears_privileges ? NOT_TOLD : loses ? LOSES : KEEPS;
		return;
	default:
		caller.set_id = NOT_TOLD;
		return;
	}
	caller.set_id = loses ? LOSES : KEEPS;
}

PyDoc_STRVAR(set_clears_privileges_doc,
	     "set_clears_privileges(wanted: bool) -> None\n\nFrom the next session on: False refuses "
	     "FUSE_HANDLE_KILLPRIV_V2, as if the kernel didn't have it.");

static PyObject *set_clears_privileges(PyObject *Py_UNUSED(module), PyObject *wanted)
{
	return mfs_set_wanted(&wants_privileges, wanted);
}

PyDoc_STRVAR(caller_doc,
	     "caller() -> tuple[bool | None, bool, bool, int, int]\n\nOf the request whose handler has begun, before "
	     "its first checkpoint: whether it keeps\nset-id bits (None: not told), whether it is pages of a mapping, "
	     "whether of a descriptor with O_DIRECT, and the caller's pid and gid.");

static PyObject *py_caller(PyObject *Py_UNUSED(module), PyObject *Py_UNUSED(ignored))
{
	return Py_BuildValue("(OOOII)",
			     caller.set_id == NOT_TOLD ? Py_None : caller.set_id == KEEPS ? Py_True : Py_False,
			     caller.of_pages ? Py_True : Py_False, caller.direct ? Py_True : Py_False, caller.pid,
			     caller.gid);
}

PyDoc_STRVAR(requests_doc, "requests() -> int\n\nHow many requests there have been.");

static PyObject *py_requests(PyObject *Py_UNUSED(module), PyObject *Py_UNUSED(ignored))
{
	return PyLong_FromUnsignedLongLong(requests);
}

PyDoc_STRVAR(asked_since_doc,
	     "asked_since(pid: int, requests: int) -> bool\n\nWhether the thread is known to have sent one after so "
	     "many.");

static PyObject *asked_since(PyObject *Py_UNUSED(module), PyObject *args)
{
	unsigned int pid;
	unsigned long long number;

	if (!PyArg_ParseTuple(args, "IK:asked_since", &pid, &number))
		return NULL;
	return PyBool_FromLong(pid != 0 && seen[pid % (1u << SEEN_BITS)].pid == pid &&
			       seen[pid % (1u << SEEN_BITS)].number > number);
}

PyMethodDef mfs_caller_methods[] = {
	{"requests", py_requests, METH_NOARGS, requests_doc},
	{"asked_since", asked_since, METH_VARARGS, asked_since_doc},
	{"set_clears_privileges", set_clears_privileges, METH_O, set_clears_privileges_doc},
	{"caller", py_caller, METH_NOARGS, caller_doc},
	{NULL, NULL, 0, NULL},
};
