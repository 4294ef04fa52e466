/* Refers to the shared library, so that the linker keeps it wherever it stands on the command line. */
extern void at_manual_seed(long long);
void (*const ruminate_torch_anchor)(long long) = at_manual_seed;
