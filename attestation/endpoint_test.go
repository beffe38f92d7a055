package attestation_test

import (
	"errors"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/kapsel-io/kapsel/attestation"
	"github.com/kapsel-io/kapsel/verify"
)

func TestEndpointURL(t *testing.T) {
	t.Parallel()
	for raw, want := range map[string]string{
		"https://example.com/webhook":                       "https://example.com/webhook",
		"https://example.com":                               "https://example.com",
		"https://example.com/":                              "https://example.com/",
		"HTTPS://Example.COM/WebHook":                       "https://example.com/WebHook",
		"https://user:secret@example.com/a?key=secret#frag": "https://example.com/a",
		"https://example.com:443/a":                         "https://example.com/a",
		"http://example.com:80/a":                           "http://example.com/a",
		"http://example.com:443/a":                          "http://example.com:443/a",
		"https://example.com:8443/a":                        "https://example.com:8443/a",
		"https://example.com:/a":                            "https://example.com/a",
		"https://example.com:0443/a":                        "https://example.com/a",
		"https://example.com./a":                            "https://example.com/a",
		"https://bücher.example/ü b":                        "https://xn--bcher-kva.example/%C3%BC%20b",
		"https://BÜCHER.example/":                           "https://xn--bcher-kva.example/",
		"https://a_b.internal/x":                            "https://a_b.internal/x",
		"http://127.0.0.1:9000/x":                           "http://127.0.0.1:9000/x",
		"http://[2001:DB8::1]:80/x":                         "http://[2001:db8::1]/x",
		"http://[fe80::1%25eth0]:8080/x":                    "http://[fe80::1]:8080/x",
		"https://example.com/a%2Fb/%7e":                     "https://example.com/a%2Fb/%7e",
		"https://example.com/<\">\\":                        "https://example.com/%3C%22%3E%5C",
		"https://example.com/a//b/../c":                     "https://example.com/a//b/../c",
	} {
		got, err := attestation.EndpointURL(raw, false)
		require.NoError(t, err, raw)
		require.Equal(t, want, got, raw)
		requireInLeaf(t, got)
	}
	secret, err := attestation.EndpointURL("https://hooks.slack.com:444/services/T/B/token?x", true)
	require.NoError(t, err)
	require.Equal(t, "https://hooks.slack.com:444", secret)
}

func TestEndpointURLRefuses(t *testing.T) {
	t.Parallel()
	for _, raw := range []string{
		"", "secret", "/secret", "//example.com/secret", "ftp://example.com/secret", "https:///secret", "https:secret",
		"https://exa mple.com/secret", "https://example.com:0/secret", "https://example.com:65536/secret",
		"https://example.com:port/secret", "https://-a.example/secret", "https://a-/secret", "https://../secret",
		"https://exa'mple.com/secret", "https://example.com/%zzsecret", "https://xn--\u00fc.example/secret",
		"https://example.com/secret\n", "https://[::1/secret", "https://user:secret@/", "mailto:secret@example.com",
		"https://example.com/secret/" + strings.Repeat("a", attestation.MaxEndpointURL),
	} {
		_, err := attestation.EndpointURL(raw, false)
		require.ErrorIs(t, err, attestation.ErrEndpointURL, "%.80q", raw)
		require.NotContains(t, err.Error(), "secret")
	}
}

func TestSecretPath(t *testing.T) {
	t.Parallel()
	for raw, want := range map[string]bool{
		"https://hooks.slack.com/services/T/B/x":                true,
		"https://HOOKS.slack.com./services/T/B/x":               true,
		"https://discord.com/api/webhooks/1/x":                  true,
		"https://canary.discord.com/api/webhooks/1/x":           true,
		"https://contoso.webhook.office.com/webhookb2/x":        true,
		"https://outlook.office.com/webhook/x":                  true,
		"https://prod-1.westus.logic.azure.com:443/workflows/x": true,
		"https://user:x@api.telegram.org:443/botx/sendMessage":  true,
		"https://example.com/hooks.slack.com":                   false,
		"https://hooks.slack.com.example.com/":                  false,
		"https://nothooks.slack.com/":                           false,
		"https://notdiscord.com/":                               false,
		"https://example.com/webhook":                           false,
		"https://example.com/%zz":                               true, // malformed: rather too careful
		"https://exa'mple.com/":                                 true,
	} {
		require.Equal(t, want, attestation.SecretPath(raw), raw)
	}
}

// Whatever EndpointURL accepts fits into a leaf; otherwise an attempt could be made that can never be recorded.
func FuzzEndpointURL(f *testing.F) {
	for _, raw := range []string{
		"https://user@example.com:8443/a%2Fb?q#f", "http://[::1%25a]:80/", "https://bücher.example./ü", "http://1.2.3.4:080",
		"https://example.com/" + strings.Repeat("é", 300), "https://[::ffff:1.2.3.4]/x", "https://xn--a.example/;:@&=+$,!~*'()",
	} {
		f.Add(raw)
	}
	f.Fuzz(func(t *testing.T, raw string) {
		for _, secret := range []bool{true, false} {
			got, err := attestation.EndpointURL(raw, secret)
			if err != nil {
				require.True(t, errors.Is(err, attestation.ErrEndpointURL))
				continue
			}
			requireInLeaf(t, got)
			again, err := attestation.EndpointURL(got, false)
			require.NoError(t, err)
			require.Equal(t, got, again, "canonical means once is enough")
		}
	})
}

// The largest leaf that can come up: every member as long as it can be.
func TestLargestLeafFits(t *testing.T) {
	t.Parallel()
	leaf := testLeaf(t)
	leaf.EndpointURL = "https://example.com/"
	leaf.EndpointURL += strings.Repeat("a", attestation.MaxEndpointURL-len(leaf.EndpointURL))
	leaf.Origin = strings.Repeat("o", 255)
	leaf.Outcome, leaf.Error, leaf.Kind = strings.Repeat("r", 64), strings.Repeat("e", 64), verify.KindCanceled
	leaf.PreviousLeafHash, leaf.HeadersHash = leaf.PayloadHash, leaf.PayloadHash
	leaf.ResponseTruncated = false
	const most = 1<<53 - 1
	leaf.AttemptNumber, leaf.DurationMS, leaf.LostStarts, leaf.PayloadSize, leaf.ResponseSize, leaf.Seq = most, most, most, most, most, most
	b, err := leaf.Bytes()
	require.NoError(t, err)
	require.Less(t, len(b), verify.MaxLeafSize)
}

func requireInLeaf(t *testing.T, endpointURL string) {
	leaf := testLeaf(t)
	leaf.EndpointURL = endpointURL
	_, err := leaf.Bytes()
	require.NoError(t, err, endpointURL)
}
