// driver_open opens libcuda.so.1, finds its symbols and initialises it. It returns
// NULL, and the result of cuInit in init; or what the system says went wrong. To be
// called once.
const char *driver_open(int *init);
