/*
 * File locks: Python answers for all nodes (matrixfs/fuse/lock_requests.py), and is told of closes only where it has
 * locks.
 */
#include "extension.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <sys/file.h>

PyObject *mfs_on_request; /* it and mfs_on_interrupted: both or none; see set_lock_handlers */

enum { GETLK, SETLK, FLOCK, FLUSH };

static void hand_over_lock(fuse_req_t request, int operation, fuse_ino_t ino, const struct fuse_file_info *info,
			   int type, long long start, long long end, int pid, int wait)
{
	mfs_hand_over(request, &mfs_on_request, operation, "(KKKiLLii)", (unsigned long long)ino,
		      (unsigned long long)info->fh, (unsigned long long)info->lock_owner, type, start, end, pid, wait);
}

/* The last byte of a range, as the kernel has it: the end of all files for length 0. */
static long long last_byte(const struct flock *lock)
{
	return lock->l_len == 0 ? LLONG_MAX : (long long)lock->l_start + lock->l_len - 1;
}

static void on_getlk(fuse_req_t request, fuse_ino_t ino, struct fuse_file_info *info, struct flock *lock)
{
	hand_over_lock(request, GETLK, ino, info, lock->l_type, lock->l_start, last_byte(lock), lock->l_pid, 0);
}

static void on_setlk(fuse_req_t request, fuse_ino_t ino, struct fuse_file_info *info, struct flock *lock, int sleep)
{
	hand_over_lock(request, SETLK, ino, info, lock->l_type, lock->l_start, last_byte(lock), lock->l_pid, sleep);
}

static void on_flock(fuse_req_t request, fuse_ino_t ino, struct fuse_file_info *info, int operation)
{
	int kind = operation & ~LOCK_NB;
	int type = kind == LOCK_SH ? F_RDLCK : kind == LOCK_EX ? F_WRLCK : F_UNLCK;

	hand_over_lock(request, FLOCK, ino, info, type, 0, LLONG_MAX, fuse_req_ctx(request)->pid,
		       (operation & LOCK_NB) == 0);
}

/*
 * Which inodes have locks that this mount set: a counting filter that Python keeps.  A false "maybe" costs a call to
 * Python, a false "none" can't be.
 */
#define FILTER_SIZE 4096u

static uint32_t filter[FILTER_SIZE];
static unsigned long long quick_flushes;

static uint32_t *filter_at(uint64_t ino)
{
	return &filter[(ino * 0x9E3779B97F4A7C15u) >> 52];
}

_Static_assert(FILTER_SIZE == 1u << (64 - 52), "the filter's index has 12 bits");

/*
 * A descriptor is closed.  One that can't write has no error to report, so without locks there is nothing to do:
 * it is answered here, as most files are opened for reading.
 */
static void on_flush(fuse_req_t request, fuse_ino_t ino, struct fuse_file_info *info)
{
	if (*filter_at(ino) != 0) {
		hand_over_lock(request, FLUSH, ino, info, F_UNLCK, 0, LLONG_MAX, fuse_req_ctx(request)->pid, 0);
	} else if (info->fh & READ_ONLY_HANDLE || mfs_inner.flush == NULL) {
		quick_flushes++;
		fuse_reply_err(request, 0);
	} else {
		mfs_inner.flush(request, ino, info);
	}
}

void mfs_wrap_locks(struct fuse_lowlevel_ops *table)
{
	if (mfs_on_request != NULL) {
		table->getlk = on_getlk;
		table->setlk = on_setlk;
		table->flock = on_flock;
		table->flush = on_flush;
	}
}

PyDoc_STRVAR(set_lock_handlers_doc,
	     "set_lock_handlers(request, interrupted) -> None\n\nHave file locks answered by Python, from the next "
	     "session on; None, None: by the kernel, for this node alone.\nrequest(operation, number, ino, fh, "
	     "owner, type, start, end, pid, wait) answers at once or later by reply_err or "
	     "reply_lock;\ninterrupted(number) must not answer itself.");

static PyObject *set_lock_handlers(PyObject *Py_UNUSED(module), PyObject *args)
{
	PyObject *request, *interrupted, *old_request = mfs_on_request, *old_interrupted = mfs_on_interrupted;

	if (!PyArg_ParseTuple(args, "OO:set_lock_handlers", &request, &interrupted))
		return NULL;
	if ((request == Py_None) != (interrupted == Py_None) ||
	    (request != Py_None && (!PyCallable_Check(request) || !PyCallable_Check(interrupted)))) {
		PyErr_SetString(PyExc_TypeError, "two callables, or None and None");
		return NULL;
	}
	mfs_on_request = request == Py_None ? NULL : Py_NewRef(request);
	mfs_on_interrupted = interrupted == Py_None ? NULL : Py_NewRef(interrupted);
	Py_XDECREF(old_request); /* last: what it frees may call anything */
	Py_XDECREF(old_interrupted);
	Py_RETURN_NONE;
}

PyDoc_STRVAR(reply_lock_doc,
	     "reply_lock(number: int, type: int, start: int, end: int, pid: int) -> int\n\nAnswer F_GETLK: "
	     "F_UNLCK, or the type and range of a lock in the way (end: its last byte).  Returns as reply_err.");

static PyObject *reply_lock(PyObject *Py_UNUSED(module), PyObject *args)
{
	unsigned long long number;
	long long start, end;
	int type, pid;
	fuse_req_t request;
	struct flock lock = {.l_whence = SEEK_SET};

	if (!PyArg_ParseTuple(args, "KiLLi:reply_lock", &number, &type, &start, &end, &pid))
		return NULL;
	if (start < 0 || end < start) {
		PyErr_SetString(PyExc_ValueError, "no range");
		return NULL;
	}
	request = mfs_unpark(number);
	if (request == NULL)
		return PyLong_FromLong(ESRCH);
	lock.l_type = (short)type;
	lock.l_start = start;
	lock.l_len = end == LLONG_MAX ? 0 : end - start + 1;
	lock.l_pid = pid;
	return PyLong_FromLong(-fuse_reply_lock(request, &lock));
}

PyDoc_STRVAR(count_locks_doc,
	     "count_locks(ino: int, change: int) -> None\n\nOne more (1) or one less (-1) reason to have closes of "
	     "the inode told to Python.");

static PyObject *count_locks(PyObject *Py_UNUSED(module), PyObject *args)
{
	unsigned long long ino;
	int change;
	uint32_t *count;

	if (!PyArg_ParseTuple(args, "Ki:count_locks", &ino, &change))
		return NULL;
	count = filter_at(ino);
	if ((change != 1 && change != -1) || (change < 0 && *count == 0)) {
		PyErr_SetString(PyExc_ValueError, "counts by 1 or -1, and not below 0");
		return NULL;
	}
	*count += (uint32_t)change;
	Py_RETURN_NONE;
}

PyDoc_STRVAR(lock_counters_doc,
	     "lock_counters() -> dict[str, int]\n\nparked: requests that Python has to answer; quick_flushes: "
	     "closes answered without Python.");

static PyObject *lock_counters(PyObject *Py_UNUSED(module), PyObject *Py_UNUSED(ignored))
{
	return Py_BuildValue("{s:I,s:K}", "parked", mfs_parked, "quick_flushes", quick_flushes);
}

PyMethodDef mfs_lock_methods[] = {
	{"set_lock_handlers", set_lock_handlers, METH_VARARGS, set_lock_handlers_doc},
	{"reply_lock", reply_lock, METH_VARARGS, reply_lock_doc},
	{"count_locks", count_locks, METH_VARARGS, count_locks_doc},
	{"lock_counters", lock_counters, METH_NOARGS, lock_counters_doc},
	{NULL, NULL, 0, NULL},
};
