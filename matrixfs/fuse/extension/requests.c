/*
 * All requests, where pyfuse3 takes them from the kernel and hands them to libfuse.
 */
#include "extension.h"

#include <errno.h>
#include <poll.h>

typedef int (*receive_fn)(struct fuse_session *, struct fuse_buf *);
typedef void (*process_buf_fn)(struct fuse_session *, const struct fuse_buf *);

/*
 * In libfuse's place for pyfuse3, which waits for the next request in Python's event loop: some 30 us.  Behind a
 * question that was answered here comes the write(2) it was for, so we look for that a moment.  The event loop has its
 * turn after a few of them: locks that are given up and the lease live there.
 */
#define NEXT_REQUEST_NS 50000
#define ANSWERS_AT_ONCE 16

__attribute__((visibility("default"))) int fuse_session_receive_buf(struct fuse_session *se, struct fuse_buf *buffer)
{
	static receive_fn real_receive;
	struct pollfd ready = {.fd = mfs_current_fd(), .events = POLLIN};
	const struct timespec moment = {.tv_nsec = NEXT_REQUEST_NS};
	int length, answers;

	if (real_receive == NULL)
		real_receive = (receive_fn)mfs_real("fuse_session_receive_buf");
	for (answers = 0; answers < ANSWERS_AT_ONCE; answers++) {
		length = real_receive(se, buffer);
		if (length <= 0 || se != mfs_session || !mfs_answer_bare(buffer, (size_t)length, ready.fd))
			return length;
		if (ppoll(&ready, 1, &moment, NULL) <= 0)
			break;
	}
	return -EINTR; /* pyfuse3 waits again */
}

/*
 * In libfuse's place for pyfuse3.  libfuse (3.14) doesn't know TMPFILE.  It and its reply look like CREATE's, with the
 * name "/", which no file can have: so that is what it becomes.
 */
__attribute__((visibility("default"))) void fuse_session_process_buf(struct fuse_session *se,
								      const struct fuse_buf *buffer)
{
	static process_buf_fn real_process;
	struct request_header *header = buffer->flags & FUSE_BUF_IS_FD ? NULL : buffer->mem;

	if (real_process == NULL)
		real_process = (process_buf_fn)mfs_real("fuse_session_process_buf");
	if (header != NULL && buffer->size >= sizeof(*header)) {
		const uint32_t *words = (const uint32_t *)(header + 1);
		size_t length = buffer->size - sizeof(*header);

		if (header->opcode == OPCODE_TMPFILE)
			header->opcode = OPCODE_CREATE;
		mfs_note_statx(header);
		mfs_note_caller(header, words, length);
		mfs_is_init_reply = header->opcode == OPCODE_INIT && mfs_take_over_replies(se, words, length);
	}
	real_process(se, buffer); /* it is there: usable() said so */
	mfs_is_init_reply = 0;
}
