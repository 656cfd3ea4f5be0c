/* Loaded into Debian's nbd-server before GnuTLS. The server generates parameters of Diffie and Hellman whenever it starts,
   which takes an emulated processor long, and uses them only for TLS. Here, there are none. */
int gnutls_dh_params_generate2(void *parameters, unsigned int bits)
{
    (void)parameters;
    (void)bits;
    return 0;
}
