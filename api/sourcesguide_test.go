package api_test

import (
	"os"
	"regexp"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/kapsel-io/kapsel/api/openapi"
)

// Every example of the guide is accepted as it stands there, and there is one for every scheme and every handshake.
func TestTheGuideToSources(t *testing.T) {
	t.Parallel()
	b := setup(t)
	guide, err := os.ReadFile("../docs/guides/sources.md")
	require.NoError(t, err)
	blocks := regexp.MustCompile("(?ms)^ *```json *([a-z]*)\n(.*?)^ *```").FindAllStringSubmatch(string(guide), -1)
	require.GreaterOrEqual(t, len(blocks), 17)
	rotated := "/api/v1/endpoints/" + b.sourceEndpoint(t, `{"scheme":"github"}`, firstSecret)
	schemes, handshakes := map[openapi.VerificationScheme]bool{}, map[openapi.HandshakeType]bool{}
	for _, block := range blocks {
		switch kind, example := block[1], block[2]; kind {
		case "":
			e := b.createEndpoint(t, example)
			schemes[e.Verification.Scheme] = true
			if e.Verification.Handshake != nil {
				handshakes[e.Verification.Handshake.Type] = true
			}
		case "secret":
			read[openapi.Secret](t, b.post(t, rotated+"/secrets", example), 201)
		case "change":
			read[openapi.Endpoint](t, b.patch(t, rotated, example), 200)
		default:
			t.Fatalf("example of unknown kind %q", kind)
		}
	}
	for _, scheme := range []openapi.VerificationScheme{
		openapi.VerificationSchemeNone, openapi.VerificationSchemeHmac, openapi.VerificationSchemeGithub, openapi.VerificationSchemeStripe,
		openapi.VerificationSchemeShopify, openapi.VerificationSchemeSlack, openapi.VerificationSchemeStandard, openapi.VerificationSchemeBasic,
		openapi.VerificationSchemeAPIKey,
	} {
		require.True(t, schemes[scheme], "no example of scheme %s", scheme)
	}
	for _, handshake := range []openapi.HandshakeType{
		openapi.HandshakeTypeSlack, openapi.HandshakeTypeMeta, openapi.HandshakeTypeDropbox, openapi.HandshakeTypeMicrosoftGraph, openapi.HandshakeTypeX,
	} {
		require.True(t, handshakes[handshake], "no example of handshake %s", handshake)
	}
}
