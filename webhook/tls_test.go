package webhook_test

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"io"
	"log"
	"math/big"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/kapsel-io/kapsel/webhook"
)

// authority is a certificate authority of a test.
type authority struct {
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
	pem  string
}

func newAuthority(t testing.TB, name string) *authority {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	require.NoError(t, err)
	template := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: name}, IsCA: true, BasicConstraintsValid: true,
		KeyUsage: x509.KeyUsageCertSign, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(24 * time.Hour)}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	require.NoError(t, err)
	cert, err := x509.ParseCertificate(der)
	require.NoError(t, err)
	return &authority{cert, key, pemOf("CERTIFICATE", der)}
}

func pemOf(kind string, der []byte) string {
	return string(pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}))
}

// issue makes a certificate for loopback and for clients, and its key.
func (a *authority) issue(t testing.TB, until time.Time) (cert, key string) {
	t.Helper()
	private, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	require.NoError(t, err)
	template := &x509.Certificate{SerialNumber: big.NewInt(2), Subject: pkix.Name{CommonName: "kapsel"}, NotBefore: time.Now().Add(-2 * time.Hour), NotAfter: until,
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth, x509.ExtKeyUsageServerAuth},
		IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}, DNSNames: []string{"receiver.test"}}
	der, err := x509.CreateCertificate(rand.Reader, template, a.cert, &private.PublicKey, a.key)
	require.NoError(t, err)
	text, err := x509.MarshalPKCS8PrivateKey(private)
	require.NoError(t, err)
	return pemOf("CERTIFICATE", der), pemOf("PRIVATE KEY", text)
}

func (a *authority) pool() *x509.CertPool {
	pool := x509.NewCertPool()
	pool.AddCert(a.cert)
	return pool
}

// secureReceiver is a TLS server whose certificate a has issued. It counts connections, and says which are open.
type secureReceiver struct {
	*httptest.Server
	connections, open atomic.Int64
}

func (a *authority) receiver(t testing.TB, http2 bool, config *tls.Config, h http.HandlerFunc) *secureReceiver {
	t.Helper()
	cert, key := a.issue(t, time.Now().Add(time.Hour))
	pair, err := tls.X509KeyPair([]byte(cert), []byte(key))
	require.NoError(t, err)
	r := &secureReceiver{Server: httptest.NewUnstartedServer(h)}
	config.Certificates = []tls.Certificate{pair}
	r.TLS, r.EnableHTTP2 = config, http2
	r.Config.ErrorLog = log.New(io.Discard, "", 0) // failed handshakes are the point
	r.Config.ConnState = func(_ net.Conn, state http.ConnState) {
		switch state {
		case http.StateNew:
			r.connections.Add(1)
			r.open.Add(1)
		case http.StateClosed, http.StateHijacked:
			r.open.Add(-1)
		}
	}
	r.StartTLS()
	t.Cleanup(r.Close)
	return r
}

func sendBy(t testing.TB, c *webhook.Client, transport webhook.Transport, url string) webhook.Result {
	t.Helper()
	route, err := c.Route(t.Context(), transport)
	require.NoError(t, err)
	return c.Send(t.Context(), webhook.Request{URL: url, Body: []byte("{}"), Route: route, Timeout: 20 * time.Second})
}

func ok(http.ResponseWriter, *http.Request) {}

func TestOwnCertificateAuthorities(t *testing.T) {
	t.Parallel()
	ours, others := newAuthority(t, "ours"), newAuthority(t, "others")
	r := ours.receiver(t, true, &tls.Config{}, ok)
	c := newClient(t, webhook.ClientConfig{RootCAs: others.pool()})
	require.Equal(t, webhook.ErrorTLS, sendBy(t, c, webhook.Transport{}, r.URL).Err)
	require.Equal(t, 200, sendBy(t, c, webhook.Transport{CAPEM: others.pem + ours.pem}, r.URL).Status)
	res := sendBy(t, c, webhook.Transport{CAPEM: others.pem}, r.URL)
	require.Equal(t, webhook.ErrorTLS, res.Err, "a connection of other settings isn't taken")
	require.False(t, res.Wrote)

	c = newClient(t, webhook.ClientConfig{RootCAs: ours.pool()})
	require.Equal(t, 200, sendBy(t, c, webhook.Transport{}, r.URL).Status)
	require.Equal(t, webhook.ErrorTLS, sendBy(t, c, webhook.Transport{CAPEM: others.pem}, r.URL).Err, "they take the place of the system's")
}

func TestClientCertificates(t *testing.T) {
	t.Parallel()
	servers, clients, strangers := newAuthority(t, "servers"), newAuthority(t, "clients"), newAuthority(t, "strangers")
	cert, key := clients.issue(t, time.Now().Add(time.Hour))
	strange, strangeKey := strangers.issue(t, time.Now().Add(time.Hour))
	for _, version := range []uint16{tls.VersionTLS12, tls.VersionTLS13} {
		var shown atomic.Value
		r := servers.receiver(t, true, &tls.Config{MaxVersion: version, ClientAuth: tls.RequireAndVerifyClientCert, ClientCAs: clients.pool()},
			func(_ http.ResponseWriter, r *http.Request) {
				shown.Store(r.TLS.PeerCertificates[0].Subject.CommonName)
			})
		c := newClient(t, webhook.ClientConfig{})
		require.Equal(t, 200, sendBy(t, c, webhook.Transport{CAPEM: servers.pem, ClientCertPEM: cert, ClientKeyPEM: key}, r.URL).Status)
		require.Equal(t, "kapsel", shown.Load())
		for _, bad := range []webhook.Transport{{CAPEM: servers.pem}, {CAPEM: servers.pem, ClientCertPEM: strange, ClientKeyPEM: strangeKey}} {
			refused := []webhook.ErrorClass{webhook.ErrorTLS}
			if version == tls.VersionTLS13 { // the request is on its way by then, and what the receiver closes on it may overtake its alert
				refused = append(refused, webhook.ErrorConnectionReset)
			}
			require.Contains(t, refused, sendBy(t, c, bad, r.URL).Err)
		}
	}
}

func TestVersionsOfTLS(t *testing.T) {
	t.Parallel()
	a := newAuthority(t, "ours")
	var spoken atomic.Uint32
	note := func(_ http.ResponseWriter, r *http.Request) { spoken.Store(uint32(r.TLS.Version)) }
	both := a.receiver(t, true, &tls.Config{MinVersion: tls.VersionTLS12}, note)
	older := a.receiver(t, true, &tls.Config{MaxVersion: tls.VersionTLS12}, note)
	oldest := a.receiver(t, true, &tls.Config{MinVersion: tls.VersionTLS10, MaxVersion: tls.VersionTLS11}, note) // what must be refused
	c := newClient(t, webhook.ClientConfig{RootCAs: a.pool()})

	require.Equal(t, 200, sendBy(t, c, webhook.Transport{}, both.URL).Status)
	require.EqualValues(t, tls.VersionTLS13, spoken.Load(), "the newest is preferred")
	require.Equal(t, 200, sendBy(t, c, webhook.Transport{}, older.URL).Status)
	require.EqualValues(t, tls.VersionTLS12, spoken.Load())
	require.Equal(t, 200, sendBy(t, c, webhook.Transport{MinTLS: "1.3"}, both.URL).Status)
	require.Equal(t, webhook.ErrorTLS, sendBy(t, c, webhook.Transport{MinTLS: "1.3"}, older.URL).Err)
	for _, least := range []string{"", "1.2", "1.3"} {
		require.Equal(t, webhook.ErrorTLS, sendBy(t, c, webhook.Transport{MinTLS: least}, oldest.URL).Err)
	}
}

func TestTransportsAreChecked(t *testing.T) {
	t.Parallel()
	a, now := newAuthority(t, "ours"), time.Now()
	until := now.Add(90 * time.Minute).Truncate(time.Second)
	cert, key := a.issue(t, until)
	expired, expiredKey := a.issue(t, now.Add(-time.Hour))
	other, otherKey := a.issue(t, until)
	weak, err := rsa.GenerateKey(rand.Reader, 1024)
	require.NoError(t, err)
	template := &x509.Certificate{SerialNumber: big.NewInt(3), NotBefore: now.Add(-time.Hour), NotAfter: until}
	weakDER, err := x509.CreateCertificate(rand.Reader, template, a.cert, &weak.PublicKey, a.key)
	require.NoError(t, err)
	weakCert, weakKey := pemOf("CERTIFICATE", weakDER), pemOf("RSA PRIVATE KEY", x509.MarshalPKCS1PrivateKey(weak))

	checked, expires, err := webhook.Transport{MinTLS: "1.3", CAPEM: "a secret in between\n" + a.pem + "\n", ClientCertPEM: "x\n" + cert + a.pem, ClientKeyPEM: key,
		ProxyURL: "https://user:pass%20word@proxy.example:8443"}.Checked(now)
	require.NoError(t, err)
	require.Equal(t, a.pem, checked.CAPEM, "nothing but certificates is kept")
	require.Equal(t, cert+a.pem, checked.ClientCertPEM)
	require.Equal(t, key, checked.ClientKeyPEM)
	require.True(t, expires.Equal(until), "the first of the chain to expire")
	require.Equal(t, "proxy.example:8443", webhook.ProxyAddress(checked.ProxyURL))
	_, expires, err = webhook.Transport{CAPEM: a.pem + expired, MinTLS: "1.2", ProxyURL: "http://proxy.example"}.Checked(now)
	require.NoError(t, err, "a bundle may hold some that have expired")
	require.Zero(t, expires)

	for _, c := range []struct {
		says string
		t    webhook.Transport
	}{
		{`min_tls must be "1.2" or "1.3"`, webhook.Transport{MinTLS: "1.1"}},
		{`min_tls must be "1.2" or "1.3"`, webhook.Transport{MinTLS: "TLS1.3"}},
		{"ca_pem must hold certificates in PEM and nothing else", webhook.Transport{CAPEM: "secret"}},
		{"ca_pem must hold certificates in PEM and nothing else", webhook.Transport{CAPEM: a.pem + key}},
		{"ca_pem must hold certificates in PEM and nothing else", webhook.Transport{CAPEM: a.pem + "secret"}},
		{"ca_pem must hold a certificate in PEM", webhook.Transport{CAPEM: " \n"}},
		{"number 1 is malformed", webhook.Transport{CAPEM: pemOf("CERTIFICATE", []byte("secret"))}},
		{"ca_pem must hold a certificate that has not expired", webhook.Transport{CAPEM: expired}},
		{"ca_pem must have at most 65536 bytes, not 65537", webhook.Transport{CAPEM: strings.Repeat("x", webhook.MaxPEM+1)}},
		{"client_key_pem is needed", webhook.Transport{ClientCertPEM: cert}},
		{"client_cert_pem is needed", webhook.Transport{ClientKeyPEM: key}},
		{"client_key_pem must be the unencrypted key of the first certificate", webhook.Transport{ClientCertPEM: cert, ClientKeyPEM: otherKey}},
		{"client_key_pem must be the unencrypted key", webhook.Transport{ClientCertPEM: cert, ClientKeyPEM: "secret"}},
		{"client_key_pem must have at most 65536 bytes", webhook.Transport{ClientCertPEM: cert, ClientKeyPEM: strings.Repeat("x", webhook.MaxPEM+1)}},
		{"client_cert_pem must not hold a certificate that has expired, as number 1", webhook.Transport{ClientCertPEM: expired, ClientKeyPEM: expiredKey}},
		{"client_cert_pem must be a chain, each certificate signed by the next; number 1 is not", webhook.Transport{ClientCertPEM: cert + other, ClientKeyPEM: key}},
		{"client_cert_pem must hold at most 10", webhook.Transport{ClientCertPEM: strings.Repeat(cert, 11), ClientKeyPEM: key}},
		{"client_cert_pem must hold certificates in PEM", webhook.Transport{ClientCertPEM: key, ClientKeyPEM: key}},
		{"client_key_pem must be an RSA key of at least 2048 bits", webhook.Transport{ClientCertPEM: weakCert, ClientKeyPEM: weakKey}},
		{"proxy_url must start with http", webhook.Transport{ProxyURL: "socks5://secret@proxy.example"}},
		{"proxy_url must start with http", webhook.Transport{ProxyURL: "secret.example:3128"}},
		{"proxy_url is malformed", webhook.Transport{ProxyURL: "http://proxy.example:secret"}},
		{"proxy_url is malformed", webhook.Transport{ProxyURL: "http://proxy.example/\r\nsecret"}},
		{"proxy_url must have a host", webhook.Transport{ProxyURL: "http://secret@:80"}},
		{"proxy_url must have a port", webhook.Transport{ProxyURL: "http://proxy.example:0"}},
		{"proxy_url must have no path", webhook.Transport{ProxyURL: "http://proxy.example/secret"}},
		{"proxy_url must have no path", webhook.Transport{ProxyURL: "http://proxy.example?secret"}},
		{"proxy_url must not have a colon in its user name", webhook.Transport{ProxyURL: "http://a%3Asecret:x@proxy.example"}},
		{"proxy_url must have at most 2048 bytes", webhook.Transport{ProxyURL: "http://proxy.example/" + strings.Repeat("x", webhook.MaxURL)}},
		{"proxy_url must not point to a private", webhook.Transport{ProxyURL: "http://u:secret@10.0.0.1:3128"}},
		{"proxy_url must not point to a private", webhook.Transport{ProxyURL: "http://localhost:3128"}},
		{"proxy_url must not point to a private", webhook.Transport{ProxyURL: "http://[::ffff:169.254.169.254]"}},
		{"proxy_url must have a host name", webhook.Transport{ProxyURL: "http://0x7f.1:3128"}},
	} {
		_, _, err := c.t.Checked(now)
		require.ErrorContains(t, err, c.says)
		require.NotContains(t, err.Error(), "secret")
		require.NotContains(t, err.Error(), "BEGIN")
	}
	_, _, err = webhook.Transport{ProxyURL: "http://127.0.0.1:3128"}.Checked(now, loopback...)
	require.NoError(t, err)
	_, err = newClient(t, webhook.ClientConfig{}).Route(t.Context(), webhook.Transport{ClientCertPEM: cert, ClientKeyPEM: otherKey})
	require.Error(t, err)
	require.NotContains(t, err.Error(), "BEGIN")
}
