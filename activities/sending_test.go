package activities_test

import (
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"encoding/pem"
	"fmt"
	"math/big"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/stretchr/testify/require"

	"github.com/kapsel-io/kapsel/id"
	"github.com/kapsel-io/kapsel/webhook"
)

func pemOf(kind string, der []byte) string {
	return string(pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}))
}

// clientCertificate makes a certificate that signs itself, and its key.
func clientCertificate(t testing.TB) (cert *x509.Certificate, certPEM, keyPEM string) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	require.NoError(t, err)
	template := &x509.Certificate{SerialNumber: big.NewInt(1), NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour)}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	require.NoError(t, err)
	cert, err = x509.ParseCertificate(der)
	require.NoError(t, err)
	text, err := x509.MarshalPKCS8PrivateKey(key)
	require.NoError(t, err)
	return cert, pemOf("CERTIFICATE", der), pemOf("PRIVATE KEY", text)
}

// exactingReceiver speaks TLS with a certificate of its own, wants the given client certificate, and keeps what it is sent.
func exactingReceiver(t testing.TB, client *x509.Certificate) (r *receiver, ca string) {
	t.Helper()
	r = newReceiver(t, says(200, "ok"))
	plain := r.Config.Handler
	secure := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, request *http.Request) {
		if request.ProtoMajor != 2 || !request.TLS.PeerCertificates[0].Equal(client) {
			w.WriteHeader(http.StatusForbidden)
			return
		}
		plain.ServeHTTP(w, request)
	}))
	secure.TLS, secure.EnableHTTP2 = &tls.Config{ClientAuth: tls.RequireAnyClientCert}, true
	secure.StartTLS()
	t.Cleanup(secure.Close)
	r.URL = secure.URL
	return r, pemOf("CERTIFICATE", secure.Certificate().Raw)
}

// addKey stores a key pair of a destination.
func (b *testBundle) addKey(t testing.TB, destination uuid.UUID, expires string) ed25519.PublicKey {
	t.Helper()
	public, private := webhook.NewSigningKey()
	b.exec(t, "insert into destination_keys (id, destination_id, tenant_id, public_key, private_key, expires_at) values ($1, $2, $3, $4, $5, "+expires+")",
		id.New(), destination, b.tenant, []byte(public), []byte(private))
	return public
}

// Both lanes go by a destination's transport and sign with all of its keys, and nothing secret gets into Temporal.
func TestBothLanesReachAndSignAsTheDestinationSays(t *testing.T) {
	t.Parallel()
	b := setup(t)
	client, cert, key := clientCertificate(t)
	r, ca := exactingReceiver(t, client)
	destination := b.addDestination(t, r.URL+"/in")
	b.exec(t, `insert into destination_transports (destination_id, tenant_id, min_tls, ca_pem, client_cert_pem, client_key_pem, client_cert_expires_at)
		values ($1, $2, '1.3', $3, $4, $5, now())`, destination, b.tenant, ca, cert, key)
	b.addSecrets(t, destination)
	current, old := b.addKey(t, destination, "null"), b.addKey(t, destination, "now() + interval '1 hour'")
	b.addKey(t, destination, "now() - interval '1 second'")

	deliveries := b.accept(t, 2, destination)
	b.claim(t, 1, destination)
	a := b.sender(t)
	mustSendBatch(t, a, b.claimBatch(t, 1, destination), 1, 0)
	for _, delivery := range deliveries {
		if d, _, _ := b.read(t, delivery); d.State == "pending" {
			require.Equal(t, "delivered", recorded(t, a, first(delivery)).State)
		}
		b.explained(t, delivery)
	}
	require.Len(t, r.got(), 2)
	for _, got := range r.got() {
		signatures := strings.Split(got.Header.Get("Webhook-Signature"), " ")
		require.Len(t, signatures, 4)
		message := fmt.Sprintf("%s.%s.%s", got.Header.Get("Webhook-Id"), got.Header.Get("Webhook-Timestamp"), got.Body)
		for i, public := range []ed25519.PublicKey{old, current} { // in the order of their IDs, newest first
			encoded, ok := strings.CutPrefix(signatures[2+i], "v1a,")
			require.True(t, ok)
			signature, err := base64.StdEncoding.DecodeString(encoded)
			require.NoError(t, err)
			require.True(t, ed25519.Verify(public, []byte(message), signature))
		}
		require.True(t, strings.HasPrefix(signatures[0], "v1,") && strings.HasPrefix(signatures[1], "v1,"))
	}
}

// Settings that were right once and can't be used now cost no attempt: nothing is sent until they are mended.
func TestAnUnusableTransportCostsNoAttempt(t *testing.T) {
	t.Parallel()
	b := setup(t)
	_, cert, key := clientCertificate(t)
	_, _, other := clientCertificate(t)
	var once sync.Once
	r := newReceiver(t, func(http.ResponseWriter, *http.Request) { once.Do(func() { t.Error("a request went out") }) })
	destination := b.addDestination(t, r.URL)
	b.exec(t, `insert into destination_transports (destination_id, tenant_id, min_tls, client_cert_pem, client_key_pem, client_cert_expires_at)
		values ($1, $2, '1.2', $3, $4, now())`, destination, b.tenant, cert, other)
	deliveries := b.accept(t, 2, destination)
	mustSendBatch(t, b.sender(t), b.claimBatch(t, 1, destination), 0, 1)
	b.claim(t, 1, destination)
	for _, delivery := range deliveries {
		d, _, _ := b.read(t, delivery)
		if !d.Claimed {
			require.True(t, d.Queued)
			continue
		}
		_, err := send(t, b.sender(t), first(delivery))
		require.Error(t, err)
		require.NotContains(t, history(t, nil, err), "BEGIN")
		require.NotContains(t, history(t, nil, err), strings.Split(key, "\n")[1])
	}
	for _, delivery := range deliveries {
		d, attempts, _ := b.read(t, delivery)
		require.Equal(t, "pending", d.State)
		require.Equal(t, 1, d.NextAttempt)
		require.Empty(t, attempts)
	}
}
