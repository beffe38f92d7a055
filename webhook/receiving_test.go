package webhook_test

import (
	"crypto/ed25519"
	"encoding/base64"
	"io"
	"net/http"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/kapsel-io/kapsel/webhook"
)

// The guide's code is the code that these tests run.
func TestTheGuideForReceiversShowsWhatIsTested(t *testing.T) {
	t.Parallel()
	guide, err := os.ReadFile("../docs/guides/receiving.md")
	require.NoError(t, err)
	code, err := os.ReadFile("receiving_example_test.go")
	require.NoError(t, err)
	_, block, found := strings.Cut(string(guide), "```go\n")
	require.True(t, found)
	block, _, _ = strings.Cut(block, "```")
	_, body, _ := strings.Cut(string(code), ")\n\n")
	require.Equal(t, body, block)
}

// sentWith sends a webhook for real and returns what arrived.
func sentWith(t *testing.T, body string, secrets [][]byte, keys []ed25519.PrivateKey) (header http.Header, received []byte) {
	t.Helper()
	url, _ := receiver(t, func(_ http.ResponseWriter, r *http.Request) {
		header = r.Header.Clone()
		received, _ = io.ReadAll(r.Body)
	})
	out := webhook.Outgoing{DeliveryID: "dlv_x", EventID: "evt_x", Attempt: 1, SentAt: time.Now(), Body: []byte(body), Secrets: secrets, Keys: keys}
	res := newClient(t, webhook.ClientConfig{}).Send(t.Context(), webhook.Request{
		URL: url, Body: []byte(body), Header: webhook.OutgoingHeaders(http.Header{}, http.Header{}, out)})
	require.Equal(t, 200, res.Status)
	return header, received
}

func TestReceiversCanVerify(t *testing.T) {
	t.Parallel()
	secret, otherSecret := webhook.NewSigningSecret(), webhook.NewSigningSecret()
	bytes, err := webhook.ParseSigningSecret(secret)
	require.NoError(t, err)
	public, private := webhook.NewSigningKey()
	oldPublic, oldPrivate := webhook.NewSigningKey()
	strange, _ := webhook.NewSigningKey()
	key, oldKey := webhook.FormatPublicKey(public), webhook.FormatPublicKey(oldPublic)
	for _, body := range []string{`{"a":1}`, "", "not\r\nJSON \x00\xff"} {
		header, received := sentWith(t, body, [][]byte{bytes}, []ed25519.PrivateKey{private, oldPrivate})
		now := time.Now()
		require.Equal(t, body, string(received))
		for _, keys := range [][]string{{secret}, {key}, {oldKey}, {otherSecret, key}} {
			require.NoError(t, verify(header, received, keys, now))
		}
		for _, keys := range [][]string{nil, {otherSecret}, {webhook.FormatPublicKey(strange)}, {"whpk_" + strings.TrimPrefix(secret, "whsec_")}, {"whsec_" + strings.TrimPrefix(key, "whpk_")}} {
			require.Error(t, verify(header, received, keys, now))
		}
		all := []string{secret, key, oldKey}
		require.Error(t, verify(header, append([]byte("x"), received...), all, now))
		require.Error(t, verify(header, received, all, now.Add(6*time.Minute)))
		for _, name := range []string{"Webhook-Id", "Webhook-Timestamp"} {
			tampered := header.Clone()
			tampered.Set(name, "1"+header.Get(name))
			require.Error(t, verify(tampered, received, all, now))
		}
		require.Equal(t, []string{"v1", "v1a", "v1a"}, versions(header))
	}
	header, received := sentWith(t, "{}", nil, []ed25519.PrivateKey{private})
	require.Equal(t, []string{"v1a"}, versions(header))
	require.NoError(t, verify(header, received, []string{key}, time.Now()))
	header, _ = sentWith(t, "{}", nil, nil)
	require.Empty(t, header.Values("Webhook-Signature"))
}

func versions(header http.Header) (all []string) {
	for _, signature := range strings.Fields(header.Get("Webhook-Signature")) {
		version, _, _ := strings.Cut(signature, ",")
		all = append(all, version)
	}
	return all
}

// The key is that of test 2 of RFC 8032, section 7.1.
func TestSigningKeysAreEd25519(t *testing.T) {
	t.Parallel()
	seed := []byte{0x4c, 0xcd, 0x08, 0x9b, 0x28, 0xff, 0x96, 0xda, 0x9d, 0xb6, 0xc3, 0x46, 0xec, 0x11, 0x4e, 0x0f, 0x5b, 0x8a, 0x31, 0x9f, 0x35, 0xab, 0xa6, 0x24, 0xda, 0x8c, 0xf6, 0xed, 0x4f, 0xb8, 0xa6, 0xfb}
	private := ed25519.NewKeyFromSeed(seed)
	require.Equal(t, "whpk_PUAXw+hDiVqStwqnTRt+vJyYLM8uxJaMwM1V8Sr0Zgw=", webhook.FormatPublicKey(private.Public().(ed25519.PublicKey)))
	_, err := webhook.ParsePrivateKey(private[:63])
	require.Error(t, err)
	parsed, err := webhook.ParsePrivateKey(private)
	require.NoError(t, err)
	at := time.Unix(1674087231, 0)
	signature := "v1a," + base64.StdEncoding.EncodeToString(ed25519.Sign(private, []byte("msg.1674087231.{}")))
	require.Equal(t, signature+" "+signature, webhook.SignStandardKeys("msg", at, []byte("{}"), []ed25519.PrivateKey{parsed, private}))
}
