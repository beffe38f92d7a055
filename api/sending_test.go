package api_test

import (
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"encoding/pem"
	"math/big"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/kapsel-io/kapsel/api/openapi"
	"github.com/kapsel-io/kapsel/id"
)

func (b *testBundle) put(t testing.TB, path, body string) answer {
	t.Helper()
	return b.do(t, "PUT", path, strings.NewReader(body), "Authorization", "Bearer "+b.key, "Content-Type", "application/json")
}

func (b *testBundle) remove(t testing.TB, path string) answer {
	t.Helper()
	return b.do(t, "DELETE", path, nil, "Authorization", "Bearer "+b.key)
}

// certificate makes one that signs itself, and its key.
func certificate(t testing.TB, until time.Time) (cert, key string) {
	t.Helper()
	private, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	require.NoError(t, err)
	template := &x509.Certificate{SerialNumber: big.NewInt(1), NotBefore: time.Now().Add(-2 * time.Hour), NotAfter: until}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &private.PublicKey, private)
	require.NoError(t, err)
	text, err := x509.MarshalPKCS8PrivateKey(private)
	require.NoError(t, err)
	return string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})), string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: text}))
}

func quoted(t testing.TB, s string) string {
	t.Helper()
	text, err := json.Marshal(s)
	require.NoError(t, err)
	return string(text)
}

// add creates a destination with the given members.
func (b *testBundle) add(t testing.TB, members string) openapi.Destination {
	t.Helper()
	return read[openapi.Destination](t, b.post(t, "/api/v1/endpoints/"+b.endpoint(t)+"/destinations", `{"url":"https://example.com"`+members+`}`), 201)
}

func TestSigningIsChosenPerDestination(t *testing.T) {
	t.Parallel()
	b := setup(t)
	plain := b.add(t, "")
	require.NotNil(t, plain.SigningSecret)
	require.Nil(t, plain.SigningKeys)
	both := b.add(t, `,"signing":["v1a","v1"]`)
	require.NotNil(t, both.SigningSecret)
	asymmetric := b.add(t, `,"signing":["v1a"]`)
	require.Nil(t, asymmetric.SigningSecret)
	seen := map[string]bool{}
	for _, d := range []openapi.Destination{both, asymmetric} {
		require.Len(t, *d.SigningKeys, 1)
		key := (*d.SigningKeys)[0]
		require.Nil(t, key.ExpiresAt)
		public, err := base64.StdEncoding.DecodeString(strings.TrimPrefix(key.PublicKey, "whpk_"))
		require.NoError(t, err)
		require.Len(t, public, ed25519.PublicKeySize)
		require.False(t, seen[key.PublicKey], "each destination has its own")
		seen[key.PublicKey] = true
		list := read[openapi.SigningKeyList](t, b.get(t, "/api/v1/destinations/"+d.ID+"/signing-keys"), 200)
		require.Equal(t, []openapi.SigningKey{key}, list.Data)
		var private []byte
		require.NoError(t, b.engine.QueryRow(t.Context(), "select private_key from destination_keys where public_key = $1", public).Scan(&private))
		require.Equal(t, ed25519.PublicKey(public), ed25519.NewKeyFromSeed(private[:32]).Public(), "the stored key is the other half")
	}
	require.Equal(t, 2, b.count(t, "destination_keys"))
	require.Equal(t, 3+2, b.count(t, "destination_secrets"), "of three endpoints' own destinations, and two more")
}

// Rotation: both keys sign for a while, so the receiver can change over in its own time.
func TestSigningKeysRotateWithAnOverlap(t *testing.T) {
	t.Parallel()
	b := setup(t)
	d := b.add(t, `,"signing":["v1a"]`)
	first := (*d.SigningKeys)[0]
	path := "/api/v1/destinations/" + d.ID + "/signing-keys"
	valid := func() []openapi.SigningKey { return read[openapi.SigningKeyList](t, b.get(t, path), 200).Data }

	second := read[openapi.SigningKey](t, b.post(t, path, `{"expire_others_in_seconds":3600}`), 201)
	list := valid()
	require.Equal(t, []string{second.ID, first.ID}, []string{list[0].ID, list[1].ID}, "newest first")
	require.Nil(t, list[0].ExpiresAt)
	require.WithinDuration(t, time.Now().Add(time.Hour), *list[1].ExpiresAt, time.Minute)
	third := read[openapi.SigningKey](t, b.post(t, path, `{}`), 201)
	list = valid()
	require.WithinDuration(t, time.Now().Add(24*time.Hour), *list[1].ExpiresAt, time.Minute)
	require.WithinDuration(t, time.Now().Add(time.Hour), *list[2].ExpiresAt, time.Minute, "none lives longer for it")

	require.Equal(t, 204, b.remove(t, path+"/"+first.ID).status)
	problem(t, b.remove(t, path+"/"+first.ID), 404, "not-found")
	require.Len(t, valid(), 2)
	fourth := read[openapi.SigningKey](t, b.post(t, path, `{"expire_others_in_seconds":0}`), 201)
	require.Len(t, valid(), 1, "a key that became known ends at once")
	problem(t, b.remove(t, path+"/"+fourth.ID), 409, "limit-reached")
	require.Len(t, valid(), 1, "something goes on signing")
	for range 4 {
		b.post(t, path, `{}`)
	}
	problem(t, b.post(t, path, `{}`), 409, "limit-reached")

	keys := read[openapi.Keys](t, b.do(t, "GET", "/api/v1/attestation/keys?limit=5", nil), 200)
	require.Equal(t, "log", keys.Keys[0].Purpose)
	require.Len(t, keys.Keys, 6)
	rest := read[openapi.Keys](t, b.do(t, "GET", "/api/v1/attestation/keys?limit=5&cursor="+*keys.NextCursor, nil), 200)
	require.Nil(t, rest.NextCursor)
	ended := map[string]bool{}
	for _, key := range append(keys.Keys[1:], rest.Keys...) {
		require.Equal(t, "v1a", key.Purpose)
		public, err := hex.DecodeString(key.PublicKey)
		require.NoError(t, err)
		hash := sha256.Sum256(public)
		require.Equal(t, hex.EncodeToString(hash[:]), key.LogKeyID)
		ended["whpk_"+base64.StdEncoding.EncodeToString(public)] = key.NotAfter != nil
	}
	require.Len(t, ended, 8, "also those that have expired")
	for _, key := range []openapi.SigningKey{first, second, third} {
		require.True(t, ended[key.PublicKey])
	}
	everything := string(b.do(t, "GET", "/api/v1/attestation/keys", nil).body)
	require.NotContains(t, everything, "dst_", "whose they are isn't told")
	require.NotContains(t, everything, "ten_")
	p := problem(t, b.do(t, "GET", "/api/v1/attestation/keys?cursor=evt_x", nil), 400, "invalid-parameter")
	require.Equal(t, "cursor", *p.Field)
	for _, c := range []string{`{"expire_others_in_seconds":-1}`, `{"expire_others_in_seconds":2592001}`} {
		p := problem(t, b.post(t, path, c), 422, "invalid-field")
		require.Equal(t, "expire_others_in_seconds", *p.Field)
	}
}

func TestTransportsAreKeptAndSecretsNotShown(t *testing.T) {
	t.Parallel()
	b := setup(t)
	until := time.Now().Add(time.Hour).UTC().Truncate(time.Second)
	cert, key := certificate(t, until)
	ca, _ := certificate(t, until)
	body := `{"min_tls":"1.3","ca_pem":` + quoted(t, ca) + `,"client_cert_pem":` + quoted(t, "of the bank\n"+cert) + `,"client_key_pem":` + quoted(t, key) +
		`,"proxy_url":"https://user:password@proxy.example.com"}`
	proxy := "proxy.example.com:443"
	want := openapi.Transport{MinTLS: "1.3", CaPem: &ca, ClientCertPem: &cert, ClientCertExpiresAt: &until, Proxy: &proxy}

	created := b.add(t, `,"transport":`+body)
	require.Equal(t, want, *created.Transport)
	path := "/api/v1/destinations/" + created.ID + "/transport"
	got := b.get(t, path)
	require.Equal(t, want, read[openapi.Transport](t, got, 200))
	require.NotContains(t, string(got.body), "PRIVATE")
	require.NotContains(t, string(got.body), "password")
	var storedKey, storedProxy string
	require.NoError(t, b.engine.QueryRow(t.Context(), "select client_key_pem, proxy_url from destination_transports").Scan(&storedKey, &storedProxy))
	require.Equal(t, key, storedKey)
	require.Equal(t, "https://user:password@proxy.example.com", storedProxy)

	usual := openapi.Transport{MinTLS: "1.2"}
	require.Equal(t, usual, read[openapi.Transport](t, b.put(t, path, `{}`), 200))
	require.Equal(t, usual, read[openapi.Transport](t, b.get(t, path), 200))
	require.Zero(t, b.count(t, "destination_transports"))
	require.Equal(t, want, read[openapi.Transport](t, b.put(t, path, body), 200))
	require.Equal(t, openapi.Transport{MinTLS: "1.3"}, read[openapi.Transport](t, b.put(t, path, `{"min_tls":"1.3"}`), 200), "all of it is replaced")
	require.Equal(t, usual, read[openapi.Transport](t, b.get(t, "/api/v1/destinations/"+b.add(t, "").ID+"/transport"), 200))
}

// Each names the field that is wrong, tells nothing of what it holds, and stores nothing.
func TestWrongSendingIsRefused(t *testing.T) {
	t.Parallel()
	b := setup(t)
	endpoint, d := b.endpoint(t), b.add(t, "")
	cert, key := certificate(t, time.Now().Add(time.Hour))
	expired, expiredKey := certificate(t, time.Now().Add(-time.Hour))
	_, otherKey := certificate(t, time.Now().Add(time.Hour))
	destinations := b.count(t, "destinations")
	transport := func(field, members string) (string, string) {
		return "transport." + field, `"transport":{` + members + `}`
	}
	for _, c := range []func() (field, members string){
		func() (string, string) { return "signing", `"signing":[]` },
		func() (string, string) { return "signing", `"signing":["v1","v1a","v1"]` },
		func() (string, string) { return "signing[0]", `"signing":["v2"]` },
		func() (string, string) { return "signing[1]", `"signing":["v1a","v1a"]` },
		func() (string, string) { return "signing", `"signing":"v1"` },
		func() (string, string) { return "transport", `"transport":"none"` },
		func() (string, string) { return transport("verify", `"verify":false`) },
		func() (string, string) { return transport("min_tls", `"min_tls":"1.0"`) },
		func() (string, string) { return transport("min_tls", `"min_tls":""`) },
		func() (string, string) { return transport("ca_pem", `"ca_pem":"s3cret"`) },
		func() (string, string) { return transport("ca_pem", `"ca_pem":`+quoted(t, key)) },
		func() (string, string) { return transport("ca_pem", `"ca_pem":`+quoted(t, expired)) },
		func() (string, string) { return transport("client_key_pem", `"client_cert_pem":`+quoted(t, cert)) },
		func() (string, string) { return transport("client_cert_pem", `"client_key_pem":`+quoted(t, key)) },
		func() (string, string) {
			return transport("client_key_pem", `"client_cert_pem":`+quoted(t, cert)+`,"client_key_pem":`+quoted(t, otherKey))
		},
		func() (string, string) {
			return transport("client_cert_pem", `"client_cert_pem":`+quoted(t, expired)+`,"client_key_pem":`+quoted(t, expiredKey))
		},
		func() (string, string) {
			return transport("proxy_url", `"proxy_url":"socks5://u:s3cret@proxy.example"`)
		},
		func() (string, string) { return transport("proxy_url", `"proxy_url":"http://u:s3cret@10.0.0.1:3128"`) },
		func() (string, string) { return transport("proxy_url", `"proxy_url":"http://u:s3cret@localhost"`) },
		func() (string, string) { return transport("proxy_url", `"proxy_url":"http://proxy.example/s3cret"`) },
	} {
		field, members := c()
		a := b.post(t, "/api/v1/endpoints/"+endpoint+"/destinations", `{"url":"https://example.com",`+members+`}`)
		p := problem(t, a, 422, "invalid-field")
		require.Equal(t, field, *p.Field, members)
		require.True(t, strings.HasPrefix(p.Detail, field+" "), p.Detail)
		require.NotContains(t, p.Detail, "s3cret")
		require.NotContains(t, p.Detail, "BEGIN")
		if inner, ok := strings.CutPrefix(members, `"transport":{`); ok {
			p := problem(t, b.put(t, "/api/v1/destinations/"+d.ID+"/transport", "{"+inner), 422, "invalid-field")
			require.Equal(t, strings.TrimPrefix(field, "transport."), *p.Field)
		}
	}
	require.Equal(t, destinations, b.count(t, "destinations"))
	require.Zero(t, b.count(t, "destination_keys"))
	require.Zero(t, b.count(t, "destination_transports"))

	p := problem(t, b.post(t, "/api/v1/endpoints/"+endpoint+"/destinations", `{"url":"https://example.com","headers":{"proxy-authorization":"Basic s3cret"}}`), 422, "invalid-field")
	require.Equal(t, "headers", *p.Field)
}

// Another tenant's destination is like one that isn't there, and nothing of it changes.
func TestSendingIsItsTenantsOwn(t *testing.T) {
	t.Parallel()
	b := setup(t)
	d := b.add(t, `,"signing":["v1","v1a"],"transport":{"min_tls":"1.3"}`)
	key := (*d.SigningKeys)[0].ID
	_, other := b.addTenant(t, "Another Bank")
	own := b.key
	for _, name := range []string{d.ID, id.Destination.Format(id.New()), "dst_x"} {
		base := "/api/v1/destinations/" + name
		b.key = other
		for _, a := range []answer{
			b.get(t, base+"/transport"), b.put(t, base+"/transport", `{}`), b.get(t, base+"/signing-keys"), b.post(t, base+"/signing-keys", `{}`),
			b.remove(t, base+"/signing-keys/"+key),
		} {
			problem(t, a, 404, "not-found")
		}
	}
	b.key = own
	base := "/api/v1/destinations/" + d.ID
	require.Equal(t, "1.3", read[openapi.Transport](t, b.get(t, base+"/transport"), 200).MinTLS)
	require.Len(t, read[openapi.SigningKeyList](t, b.get(t, base+"/signing-keys"), 200).Data, 1)
	problem(t, b.remove(t, base+"/signing-keys/"+id.SigningKey.Format(id.New())), 404, "not-found")
	_, err := b.owner.Exec(t.Context(), "update destinations set deleted_at = now()")
	require.NoError(t, err)
	problem(t, b.get(t, base+"/transport"), 404, "not-found")
	problem(t, b.post(t, base+"/signing-keys", `{}`), 404, "not-found")
	for _, key := range read[openapi.Keys](t, b.do(t, "GET", "/api/v1/attestation/keys", nil), 200).Keys[1:] {
		require.NotNil(t, key.NotAfter, "with its destination a key is over")
	}
}

// Nobody lengthens the public list of keys as they like: a destination gets some keys a day, however soon they expire.
func TestSigningKeysOfADayAreBounded(t *testing.T) {
	t.Parallel()
	b := setup(t)
	endpoint := b.createEndpoint(t, `{"name":"in","verification":{"scheme":"none"},"destinations":[{"url":"https://example.com/in"}]}`)
	path := "/api/v1/destinations/" + endpoint.Destinations[0].ID + "/signing-keys"
	made := len(read[openapi.SigningKeyList](t, b.get(t, path), 200).Data)
	for ; made < 20; made++ {
		require.Equal(t, 201, b.post(t, path, `{"expire_others_in_seconds":0}`).status)
	}
	problem(t, b.post(t, path, `{"expire_others_in_seconds":0}`), 409, "limit-reached")
	require.Len(t, read[openapi.SigningKeyList](t, b.get(t, path), 200).Data, 1, "the last one goes on: the refused request expired nothing")
	_, err := b.owner.Exec(t.Context(), "update destination_keys set created_at = created_at - interval '1 day'")
	require.NoError(t, err)
	require.Equal(t, 201, b.post(t, path, `{"expire_others_in_seconds":0}`).status)
}
