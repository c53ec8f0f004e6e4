/*
 * The session: how it is made and ended in libfuse's place, and what it agrees on with the kernel.
 */
#include "extension.h"

#include <dlfcn.h>
#include <errno.h>
#include <string.h>

#define REQUEST_BYTES 1048576u
#define REQUEST_BYTES_TEXT "1048576"
#define BACKGROUND_MAX 256u
#define CONGESTION 192u

typedef struct fuse_session *(*session_new_fn)(struct fuse_args *, const struct fuse_lowlevel_ops *, size_t, void *);
typedef void (*session_destroy_fn)(struct fuse_session *);

struct fuse_session *mfs_session;
struct fuse_lowlevel_ops mfs_inner;
struct mfs_agreed mfs_negotiated;
static int max_read_requested;

/*
 * libfuse's own function behind ours.  The version is that of pyfuse3's reference; RTLD_NEXT would look behind this
 * module only, but libfuse3 may have been loaded before it: hence the handle.
 */
void *mfs_real(const char *name)
{
	void *library = dlopen("libfuse3.so.3", RTLD_NOW | RTLD_NOLOAD);
	void *found = NULL;

	if (library != NULL) {
		found = dlvsym(library, name, "FUSE_3.0");
		dlclose(library); /* this module is linked against it: it stays */
	}
	return found;
}

int mfs_current_fd(void)
{
	return mfs_session == NULL ? -1 : fuse_session_fd(mfs_session);
}

static void want(struct fuse_conn_info *conn, unsigned flags, int wanted)
{
	if (wanted)
		conn->want |= flags & conn->capable; /* more than capable is an error to libfuse */
	else
		conn->want &= ~flags;
}

static void on_init(void *userdata, struct fuse_conn_info *conn)
{
	if (mfs_inner.init != NULL)
		mfs_inner.init(userdata, conn);

	conn->max_write = REQUEST_BYTES; /* libfuse derives max_pages from it */
	if (max_read_requested)
		conn->max_read = REQUEST_BYTES; /* libfuse insists on the same figure here and in the mount option */
	if (conn->max_readahead < REQUEST_BYTES)
		conn->max_readahead = REQUEST_BYTES; /* the kernel takes the smaller of this and the device's */
	conn->max_background = BACKGROUND_MAX;
	conn->congestion_threshold = CONGESTION;
	conn->time_gran = 1;

	/* A changed mtime drops the pages (coherence.md 2); many lookups in one directory at once; one call for
	 * open with O_TRUNC, where there is a call for open at all: else the kernel truncates by SETATTR. */
	want(conn, FUSE_CAP_AUTO_INVAL_DATA | FUSE_CAP_PARALLEL_DIROPS, 1);
	want(conn, FUSE_CAP_ATOMIC_O_TRUNC, !mfs_no_open);
	/* Without them the kernel keeps locks to this node. */
	want(conn, FUSE_CAP_POSIX_LOCKS | FUSE_CAP_FLOCK_LOCKS, mfs_on_request != NULL);
	/* Where the kernel checks access control lists, it sends the umask: a directory's default list goes before
	 * it. */
	want(conn, FUSE_CAP_DONT_MASK, (conn->want & FUSE_CAP_POSIX_ACL) != 0);
	want(conn, FUSE_CAP_READDIRPLUS | FUSE_CAP_ASYNC_READ | FUSE_CAP_ASYNC_DIO | FUSE_CAP_CACHE_SYMLINKS, 1);
	/* Dirty pages without a lock (coherence.md 3); set-id bits without saying whose write it was (what we want of
	 * that is FUSE_HANDLE_KILLPRIV_V2); a pipe costs small requests a second system call and saves large ones
	 * nothing, as pyfuse3 copies anyway. */
	want(conn, FUSE_CAP_WRITEBACK_CACHE | FUSE_CAP_HANDLE_KILLPRIV | FUSE_CAP_SPLICE_READ, 0);

	mfs_negotiated.minor = conn->proto_minor;
	mfs_negotiated.capable = conn->capable;
	mfs_negotiated.want = conn->want;
	mfs_negotiated.max_write = conn->max_write;
	mfs_negotiated.max_readahead = conn->max_readahead;
}

static void wrap_operations(struct fuse_lowlevel_ops *table)
{
	table->init = on_init;
	mfs_wrap_ranges(table);
	mfs_wrap_flags(table);
	mfs_wrap_attributes(table);
	mfs_wrap_locks(table);
	mfs_wrap_statx(table);
	mfs_wrap_handles(table); /* behind the locks: without OPEN there is no FLUSH */
}

/* In libfuse's place for pyfuse3.  NULL is its answer to any failure. */
__attribute__((visibility("default"))) struct fuse_session *
fuse_session_new(struct fuse_args *args, const struct fuse_lowlevel_ops *ops, size_t op_size, void *userdata)
{
	session_new_fn real_new = (session_new_fn)mfs_real("fuse_session_new");
	struct fuse_lowlevel_ops table;
	struct fuse_session *made;

	if (real_new == NULL)
		return NULL; /* can't be: usable() said so before pyfuse3 was loaded */
	memset(&table, 0, sizeof(table));
	memcpy(&table, ops, op_size < sizeof(table) ? op_size : sizeof(table));
	memset(&mfs_negotiated, 0, sizeof(mfs_negotiated));
	mfs_forget_bare();
	max_read_requested = fuse_opt_add_arg(args, "-omax_read=" REQUEST_BYTES_TEXT) == 0;
	mfs_inner = table;
	wrap_operations(&table);
	made = real_new(args, &table, sizeof(table), userdata);
	if (made != NULL)
		mfs_session = made;
	return made;
}

/* In libfuse's place for pyfuse3: forget the session before it is freed. */
__attribute__((visibility("default"))) void fuse_session_destroy(struct fuse_session *se)
{
	session_destroy_fn real_destroy = (session_destroy_fn)mfs_real("fuse_session_destroy");

	if (se == mfs_session) {
		mfs_answer_all(ENOTCONN);
		mfs_session = NULL;
	}
	if (real_destroy != NULL)
		real_destroy(se);
}

PyDoc_STRVAR(usable_doc,
	     "usable() -> bool\n\nWhether libfuse's real functions were found: ask before importing pyfuse3.");

static PyObject *usable(PyObject *Py_UNUSED(module), PyObject *Py_UNUSED(ignored))
{
	return PyBool_FromLong(mfs_real("fuse_session_new") != NULL && mfs_real("fuse_session_receive_buf") != NULL &&
			       mfs_real("fuse_session_process_buf") != NULL &&
			       mfs_real("fuse_session_destroy") != NULL);
}

PyDoc_STRVAR(session_fd_doc,
	     "session_fd() -> int\n\nThe session's file descriptor; -1 without a mounted session, or when pyfuse3 "
	     "was loaded first and so\nits session was made without this module.");

static PyObject *py_session_fd(PyObject *Py_UNUSED(module), PyObject *Py_UNUSED(ignored))
{
	return PyLong_FromLong(mfs_current_fd());
}

PyDoc_STRVAR(kernel_features_doc,
	     "kernel_features() -> dict[str, int]\n\nWhat kernel and libfuse agreed on: minor (protocol 7.minor), "
	     "capable and want (FUSE_CAP bits),\nmax_write and max_readahead in bytes, clears_privileges "
	     "(FUSE_HANDLE_KILLPRIV_V2).  All 0 before the first request was served.");

static PyObject *kernel_features(PyObject *Py_UNUSED(module), PyObject *Py_UNUSED(ignored))
{
	return Py_BuildValue("{s:I,s:I,s:I,s:I,s:I,s:i}", "minor", mfs_negotiated.minor, "capable",
			     mfs_negotiated.capable, "want", mfs_negotiated.want, "max_write", mfs_negotiated.max_write,
			     "max_readahead", mfs_negotiated.max_readahead, "clears_privileges",
			     mfs_negotiated.clears_privileges);
}

PyMethodDef mfs_session_methods[] = {
	{"usable", usable, METH_NOARGS, usable_doc},
	{"session_fd", py_session_fd, METH_NOARGS, session_fd_doc},
	{"kernel_features", kernel_features, METH_NOARGS, kernel_features_doc},
	{NULL, NULL, 0, NULL},
};
