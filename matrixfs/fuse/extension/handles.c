/*
 * File handles: files that the kernel opens without asking ("localflocks", coherence.md 6), and what a WRITE tells.
 */
#include "extension.h"

#include <errno.h>
#include <fcntl.h>

int mfs_no_open;

static void refuse_open(fuse_req_t request, fuse_ino_t Py_UNUSED(ino), struct fuse_file_info *Py_UNUSED(info))
{
	fuse_reply_err(request, ENOSYS); /* once: the kernel then opens, and closes, by itself */
}

static void refuse_create(fuse_req_t request, fuse_ino_t Py_UNUSED(parent), const char *Py_UNUSED(name),
			  mode_t Py_UNUSED(mode), struct fuse_file_info *Py_UNUSED(info))
{
	fuse_reply_err(request, ENOSYS); /* once: the kernel sends LOOKUP and MKNOD */
}

/* pyfuse3 passes on nothing but fh: let it say which inode. */
void mfs_name_inode(fuse_ino_t ino, struct fuse_file_info *info)
{
	if (info->fh == 0)
		info->fh = ino | INODE_HANDLE;
}

static void read_inode(fuse_req_t request, fuse_ino_t ino, size_t size, off_t offset, struct fuse_file_info *info)
{
	mfs_name_inode(ino, info);
	mfs_inner.read(request, ino, size, offset, info);
}

static void fsync_inode(fuse_req_t request, fuse_ino_t ino, int datasync, struct fuse_file_info *info)
{
	mfs_name_inode(ino, info);
	mfs_inner.fsync(request, ino, datasync, info);
}

/* The file's flags are those of now, after F_SETFL, which no OPEN told of. */
static void tell_write(fuse_ino_t ino, struct fuse_file_info *info)
{
	if (mfs_no_open)
		mfs_name_inode(ino, info);
	info->fh |= TOLD_HANDLE | (info->flags & O_APPEND ? APPEND_HANDLE : 0);
}

static void on_write(fuse_req_t request, fuse_ino_t ino, const char *buffer, size_t size, off_t offset,
		     struct fuse_file_info *info)
{
	tell_write(ino, info);
	mfs_inner.write(request, ino, buffer, size, offset, info);
}

static void on_write_buf(fuse_req_t request, fuse_ino_t ino, struct fuse_bufvec *buffer, off_t offset,
			 struct fuse_file_info *info)
{
	tell_write(ino, info);
	mfs_inner.write_buf(request, ino, buffer, offset, info);
}

void mfs_wrap_handles(struct fuse_lowlevel_ops *table)
{
	table->write = table->write == NULL ? NULL : on_write;
	table->write_buf = table->write_buf == NULL ? NULL : on_write_buf;
	if (mfs_no_open) {
		table->open = refuse_open;
		table->flush = refuse_open;
		table->create = refuse_create;
		table->read = table->read == NULL ? NULL : read_inode;
		table->fsync = table->fsync == NULL ? NULL : fsync_inode;
	}
}

PyDoc_STRVAR(set_no_open_doc,
	     "set_no_open(wanted: bool) -> None\n\nFrom the next session on: have the kernel open and close files "
	     "by itself (coherence.md 6).");

static PyObject *set_no_open(PyObject *Py_UNUSED(module), PyObject *wanted)
{
	return mfs_set_wanted(&mfs_no_open, wanted);
}

PyMethodDef mfs_handle_methods[] = {
	{"set_no_open", set_no_open, METH_O, set_no_open_doc},
	{NULL, NULL, 0, NULL},
};
