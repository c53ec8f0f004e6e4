/*
 * The Python module: the functions of all files here, under one name.
 */
#include "extension.h"

static PyMethodDef *const methods[] = {
	mfs_session_methods, mfs_parked_methods, mfs_lock_methods,   mfs_attribute_methods,    mfs_handle_methods,
	mfs_range_methods,   mfs_flag_methods,	 mfs_caller_methods, mfs_notification_methods,
	mfs_statx_methods,
};

static struct PyModuleDef definition = {
	PyModuleDef_HEAD_INIT,
	.m_name = "_libfuse",
	.m_doc = "What pyfuse3 lacks, added beside it; see matrixfs/fuse/libfuse.py.",
	.m_size = -1, /* one session per process: the state is the process's */
};

PyMODINIT_FUNC PyInit__libfuse(void)
{
	PyObject *module = PyModule_Create(&definition);

	for (size_t i = 0; module != NULL && i < sizeof(methods) / sizeof(*methods); i++) {
		if (PyModule_AddFunctions(module, methods[i]) < 0)
			Py_CLEAR(module);
	}
	return module;
}
