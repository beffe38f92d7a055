package webhook_test

import (
	"crypto/rand"
	"encoding/hex"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/kapsel-io/kapsel/webhook"
)

// GitHub's documented example, "Validating webhook deliveries".
const (
	gitHubSecret    = "It's a Secret to Everybody"
	gitHubBody      = "Hello, World!"
	gitHubSignature = "sha256=757107ea0eb2509fc211221cce984b8a37570b6d7586c22c46f4379c8b043e17"
)

var (
	at         = time.Date(2026, 11, 23, 12, 0, 0, 123_999_999, time.UTC)
	otherValid = []byte("another secret of enough bytes")
)

func header(pairs ...string) http.Header {
	h := http.Header{}
	for i := 0; i < len(pairs); i += 2 {
		h.Add(pairs[i], pairs[i+1])
	}
	return h
}

func TestVerifyGitHub(t *testing.T) {
	t.Parallel()
	const name = "X-Hub-Signature-256"
	good := []byte(gitHubSecret)
	require.Equal(t, gitHubSignature, webhook.SignGitHub(good, []byte(gitHubBody)))
	digest := strings.TrimPrefix(gitHubSignature, "sha256=")
	for _, tc := range []struct {
		name    string
		headers http.Header
		secrets [][]byte
		want    error
	}{
		{"GitHub's own example", header(name, gitHubSignature), [][]byte{good}, nil},
		{"header name in another case", header(strings.ToLower(name), gitHubSignature), [][]byte{good}, nil},
		{"upper-case hex", header(name, "sha256="+strings.ToUpper(digest)), [][]byte{good}, nil},
		{"the second of two secrets", header(name, gitHubSignature), [][]byte{otherValid, good}, nil},
		{"the first of two secrets", header(name, gitHubSignature), [][]byte{good, otherValid}, nil},
		{"another secret", header(name, gitHubSignature), [][]byte{otherValid}, webhook.ErrBadSignature},
		{"no secret", header(name, gitHubSignature), nil, webhook.ErrBadSignature},
		{"an empty secret", header(name, webhook.SignGitHub(nil, []byte(gitHubBody))), [][]byte{{}}, webhook.ErrBadSignature},
		{"no header", header(), [][]byte{good}, webhook.ErrNoSignature},
		{"an empty header", header(name, ""), [][]byte{good}, webhook.ErrNoSignature},
		{"the old SHA-1 header alone", header("X-Hub-Signature", gitHubSignature), [][]byte{good}, webhook.ErrNoSignature},
		{"two headers", header(name, gitHubSignature, name, gitHubSignature), [][]byte{good}, webhook.ErrBadSignature},
		{"two in one header", header(name, gitHubSignature+", "+gitHubSignature), [][]byte{good}, webhook.ErrBadSignature},
		{"no prefix", header(name, digest), [][]byte{good}, webhook.ErrBadSignature},
		{"prefix in upper case", header(name, "SHA256="+digest), [][]byte{good}, webhook.ErrBadSignature},
		{"prefix alone", header(name, "sha256="), [][]byte{good}, webhook.ErrBadSignature},
		{"one digit short", header(name, gitHubSignature[:len(gitHubSignature)-1]), [][]byte{good}, webhook.ErrBadSignature},
		{"one byte short", header(name, gitHubSignature[:len(gitHubSignature)-2]), [][]byte{good}, webhook.ErrBadSignature},
		{"one byte long", header(name, gitHubSignature+"00"), [][]byte{good}, webhook.ErrBadSignature},
		{"a space before", header(name, " "+gitHubSignature), [][]byte{good}, webhook.ErrBadSignature},
		{"no hex", header(name, "sha256=zz"+digest[2:]), [][]byte{good}, webhook.ErrBadSignature},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			err := webhook.Source{Scheme: "github"}.Verify(tc.headers, []byte(gitHubBody), tc.secrets, at)
			require.ErrorIs(t, err, tc.want)
			if err != nil {
				require.NotContains(t, err.Error(), gitHubSecret)
			}
		})
	}
}

func TestVerifyNoticesEveryChangedBit(t *testing.T) {
	t.Parallel()
	source, secrets := webhook.Source{Scheme: "github"}, [][]byte{[]byte(gitHubSecret)}
	for bit := range len(gitHubBody) * 8 {
		body := []byte(gitHubBody)
		body[bit/8] ^= 1 << (bit % 8)
		require.ErrorIs(t, source.Verify(header("X-Hub-Signature-256", gitHubSignature), body, secrets, at), webhook.ErrBadSignature)
	}
	mac, err := hex.DecodeString(strings.TrimPrefix(gitHubSignature, "sha256="))
	require.NoError(t, err)
	for bit := range len(mac) * 8 {
		changed := append([]byte(nil), mac...)
		changed[bit/8] ^= 1 << (bit % 8)
		h := header("X-Hub-Signature-256", "sha256="+hex.EncodeToString(changed))
		require.ErrorIs(t, source.Verify(h, []byte(gitHubBody), secrets, at), webhook.ErrBadSignature)
	}
}

func TestVerifyHMAC(t *testing.T) {
	t.Parallel()
	// RFC 4231 and RFC 2202, test case 3: key of 20 bytes 0xaa, 50 bytes 0xdd.
	key, data := []byte(strings.Repeat("\xaa", 20)), []byte(strings.Repeat("\xdd", 50))
	for name, tc := range map[string]struct {
		settings webhook.HMAC
		value    string
	}{
		"defaults": {webhook.HMAC{}, "773ea91e36800e46854db8ebd09181a72959098b3ef8c122d9635514ced565fe"},
		"sha256":   {webhook.HMAC{Algorithm: "sha256", Encoding: "hex", Prefix: "v1:"}, "v1:773ea91e36800e46854db8ebd09181a72959098b3ef8c122d9635514ced565fe"},
		"sha512":   {webhook.HMAC{Algorithm: "sha512"}, "fa73b0089d56a284efb0f0756c890be9b1b5dbdd8ee81a3655f83e33b2279d39bf3e848279a722c806b485a47e67c807b946a337bee8942674278859e13292fb"},
		"sha1":     {webhook.HMAC{Algorithm: "sha1"}, "125d7342b9ac11cd91a39af48aa17b4f63f175d3"},
		"base64":   {webhook.HMAC{Algorithm: "sha1", Encoding: "base64"}, "El1zQrmsEc2Ro5r0iqF7T2PxddM="},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			tc.settings.Header = "x-signature"
			source := webhook.Source{Scheme: "hmac", HMAC: &tc.settings}
			require.NoError(t, source.Validate())
			require.Equal(t, tc.value, tc.settings.Sign(key, data))
			require.NoError(t, source.Verify(header("X-Signature", tc.value), data, [][]byte{key}, at))
			require.ErrorIs(t, source.Verify(header("X-Signature", tc.value), data[1:], [][]byte{key}, at), webhook.ErrBadSignature)
			require.ErrorIs(t, source.Verify(header("X-Signature", tc.value[1:]), data, [][]byte{key}, at), webhook.ErrBadSignature)
			require.ErrorIs(t, source.Verify(header("X-Signature", tc.settings.Prefix), data, [][]byte{key}, at), errOfPrefixAlone(tc.settings))
		})
	}
}

// errOfPrefixAlone: a header that holds only the prefix is empty if there is no prefix.
func errOfPrefixAlone(m webhook.HMAC) error {
	if m.Prefix == "" {
		return webhook.ErrNoSignature
	}
	return webhook.ErrBadSignature
}

func TestVerifyFailsClosed(t *testing.T) {
	t.Parallel()
	h := header("X-Hub-Signature-256", gitHubSignature)
	secrets := [][]byte{[]byte(gitHubSecret)}
	for _, source := range []webhook.Source{{}, {Scheme: "carrier pigeon"}, {Scheme: "hmac"}, {Scheme: "api_key"}, {Scheme: "standard", Standard: &webhook.Standard{Headers: "x"}}, {Scheme: "hmac", HMAC: &webhook.HMAC{Header: "X", Algorithm: "md5"}}} {
		require.ErrorIs(t, source.Verify(h, []byte(gitHubBody), secrets, at), webhook.ErrBadSignature, "%+v", source)
	}
	require.NoError(t, webhook.Source{Scheme: "none"}.Verify(header(), nil, nil, at))
}

func TestSourceErrorsNameTheField(t *testing.T) {
	t.Parallel()
	long := strings.Repeat("x", 200)
	for want, source := range map[string]webhook.Source{
		"scheme must be":                   {Scheme: "carrier pigeon"},
		"hmac has no meaning":              {Scheme: "github", HMAC: &webhook.HMAC{Header: "X"}},
		"hmac is needed":                   {Scheme: "hmac"},
		"hmac.header must be a header of":  {Scheme: "hmac", HMAC: &webhook.HMAC{Header: "transfer-encoding"}},
		"hmac.header must be the name":     {Scheme: "hmac", HMAC: &webhook.HMAC{Header: "not a name"}},
		"of a header of at most 128":       {Scheme: "hmac", HMAC: &webhook.HMAC{Header: long}},
		"hmac.algorithm must be":           {Scheme: "hmac", HMAC: &webhook.HMAC{Header: "X", Algorithm: "md5"}},
		"hmac.encoding must be":            {Scheme: "hmac", HMAC: &webhook.HMAC{Header: "X", Encoding: "rot13"}},
		"hmac.prefix must have at most 64": {Scheme: "hmac", HMAC: &webhook.HMAC{Header: "X", Prefix: long}},
	} {
		require.ErrorContains(t, source.Validate(), want)
	}
	gitHub := webhook.Source{Scheme: "github"}
	require.NoError(t, gitHub.ValidateSecrets([][]byte{make([]byte, 16), make([]byte, 1024)}))
	require.NoError(t, webhook.Source{Scheme: "none"}.ValidateSecrets(nil))
	for want, secrets := range map[string][][]byte{
		"secrets must be 1 to 10":                         nil,
		"secrets must be 1 to 10 for":                     make([][]byte, 11),
		"secrets[1] must have 16 to 1024 bytes, not 15":   {make([]byte, 16), make([]byte, 15)},
		"secrets[0] must have 16 to 1024 bytes, not 1025": {make([]byte, 1025)},
	} {
		require.ErrorContains(t, gitHub.ValidateSecrets(secrets), want)
	}
	require.ErrorContains(t, webhook.Source{Scheme: "none"}.ValidateSecrets([][]byte{make([]byte, 16)}), "no meaning")
}

// Nothing but the one right signature is accepted, and nothing panics.
func FuzzVerify(f *testing.F) {
	digest := strings.TrimPrefix(gitHubSignature, "sha256=")
	for _, value := range []string{"", gitHubSignature, digest, "sha256=", "sha256=\xff", "SHA256=" + digest} {
		f.Add(value, []byte(gitHubBody))
	}
	f.Add(webhook.SignGitHub([]byte(gitHubSecret), nil), []byte{})
	f.Fuzz(func(t *testing.T, value string, body []byte) {
		secret := []byte(gitHubSecret)
		err := webhook.Source{Scheme: "github"}.Verify(header("X-Hub-Signature-256", value), body, [][]byte{secret}, at)
		right := strings.HasPrefix(value, "sha256=") && strings.EqualFold(value, webhook.SignGitHub(secret, body))
		switch {
		case right:
			require.NoError(t, err)
		case value == "":
			require.ErrorIs(t, err, webhook.ErrNoSignature)
		default:
			require.ErrorIs(t, err, webhook.ErrBadSignature)
		}
	})
}

func BenchmarkVerify(b *testing.B) {
	body := make([]byte, 8<<10)
	_, _ = rand.Read(body)
	secrets := [][]byte{otherValid, []byte(gitHubSecret)}
	h := header("X-Hub-Signature-256", webhook.SignGitHub(secrets[1], body))
	b.SetBytes(int64(len(body)))
	for b.Loop() {
		if err := (webhook.Source{Scheme: "github"}).Verify(h, body, secrets, at); err != nil {
			b.Fatal(err)
		}
	}
}
