/*
 * A security key in software, for tests: what ssh-keygen and ssh-agent load in place of one on USB
 * (SSH_SK_PROVIDER; OpenSSH's sk-api, version 10). The key handle is the private key itself, so it protects
 * nothing.
 *
 * The folder in MUSTER_TEST_AUTHENTICATOR holds what it remembers: `counter`, how many signatures it made; and
 * what a test asks of it: with a file `untouched` it signs without stating that anybody was present.
 *
 *     cc -shared -fPIC -o authenticator.so authenticator.c -lcrypto
 */
#include <openssl/evp.h>
#include <openssl/rand.h>
#include <openssl/sha.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define VERSION 0x000a0000
#define ED25519 1
#define PRESENT 1
#define ERROR_GENERAL -1
#define ERROR_UNSUPPORTED -2

struct sk_option;
struct sk_resident_key;

struct sk_enroll_response {
    uint8_t flags;
    uint8_t *public_key;
    size_t public_key_len;
    uint8_t *key_handle;
    size_t key_handle_len;
    uint8_t *signature;
    size_t signature_len;
    uint8_t *attestation_cert;
    size_t attestation_cert_len;
    uint8_t *authdata;
    size_t authdata_len;
};

struct sk_sign_response {
    uint8_t flags;
    uint32_t counter;
    uint8_t *sig_r;
    size_t sig_r_len;
    uint8_t *sig_s;
    size_t sig_s_len;
};

static char *remembered(const char *name, char *path, size_t size) {
    const char *folder = getenv("MUSTER_TEST_AUTHENTICATOR");
    if (folder == NULL) return NULL;
    snprintf(path, size, "%s/%s", folder, name);
    return path;
}

/* One more than the last time; 1 where nothing is remembered. */
static uint32_t count(void) {
    char path[4096];
    unsigned before = 0;
    FILE *file;
    if (remembered("counter", path, sizeof path) == NULL) return 1;
    if ((file = fopen(path, "r")) != NULL) {
        if (fscanf(file, "%u", &before) != 1) before = 0;
        fclose(file);
    }
    if ((file = fopen(path, "w")) != NULL) {
        fprintf(file, "%u\n", before + 1);
        fclose(file);
    }
    return before + 1;
}

static int is_touched(void) {
    char path[4096];
    return remembered("untouched", path, sizeof path) == NULL || access(path, F_OK) != 0;
}

uint32_t sk_api_version(void) { return VERSION; }

int sk_enroll(uint32_t alg, const uint8_t *challenge, size_t challenge_len, const char *application,
              uint8_t flags, const char *pin, struct sk_option **options,
              struct sk_enroll_response **response) {
    struct sk_enroll_response *made;
    EVP_PKEY *key;
    size_t length = 32;
    (void)challenge, (void)challenge_len, (void)application, (void)pin, (void)options;
    if (alg != ED25519) return ERROR_UNSUPPORTED;
    if ((made = calloc(1, sizeof *made)) == NULL) return ERROR_GENERAL;
    made->flags = flags;
    made->public_key = malloc(32);
    made->key_handle = malloc(32);
    made->signature = calloc(1, 64);
    if (made->public_key == NULL || made->key_handle == NULL || made->signature == NULL) return ERROR_GENERAL;
    made->public_key_len = made->key_handle_len = 32;
    made->signature_len = 64;
    if (RAND_bytes(made->key_handle, 32) != 1) return ERROR_GENERAL;
    key = EVP_PKEY_new_raw_private_key(EVP_PKEY_ED25519, NULL, made->key_handle, 32);
    if (key == NULL || EVP_PKEY_get_raw_public_key(key, made->public_key, &length) != 1) return ERROR_GENERAL;
    EVP_PKEY_free(key);
    *response = made;
    return 0;
}

/* Signs SHA256(application), the flags, the counter and SHA256(data), as a FIDO2 authenticator does. */
int sk_sign(uint32_t alg, const uint8_t *data, size_t data_len, const char *application,
            const uint8_t *key_handle, size_t key_handle_len, uint8_t flags, const char *pin,
            struct sk_option **options, struct sk_sign_response **response) {
    struct sk_sign_response *made;
    EVP_PKEY *key;
    EVP_MD_CTX *context;
    uint8_t message[32 + 1 + 4 + 32];
    (void)flags, (void)pin, (void)options;
    if (alg != ED25519 || key_handle_len != 32) return ERROR_UNSUPPORTED;
    if ((made = calloc(1, sizeof *made)) == NULL) return ERROR_GENERAL;
    made->flags = is_touched() ? PRESENT : 0;
    made->counter = count();
    SHA256((const uint8_t *)application, strlen(application), message);
    message[32] = made->flags;
    for (int byte = 0; byte < 4; byte++) message[33 + byte] = made->counter >> (24 - 8 * byte);
    SHA256(data, data_len, message + 37);
    made->sig_r_len = 64;
    made->sig_r = malloc(64);
    key = EVP_PKEY_new_raw_private_key(EVP_PKEY_ED25519, NULL, key_handle, 32);
    context = EVP_MD_CTX_new();
    if (made->sig_r == NULL || key == NULL || context == NULL ||
        EVP_DigestSignInit(context, NULL, NULL, NULL, key) != 1 ||
        EVP_DigestSign(context, made->sig_r, &made->sig_r_len, message, sizeof message) != 1)
        return ERROR_GENERAL;
    EVP_MD_CTX_free(context);
    EVP_PKEY_free(key);
    *response = made;
    return 0;
}

int sk_load_resident_keys(const char *pin, struct sk_option **options, struct sk_resident_key ***keys,
                          size_t *count) {
    (void)pin, (void)options, (void)keys, (void)count;
    return ERROR_UNSUPPORTED;
}
