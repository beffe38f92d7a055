package webhook

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/binary"
	"encoding/pem"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"
)

// Transport is how a destination is reached where that isn't as usual. The zero value is as usual: directly, by TLS 1.2 or
// newer, with the system's certificate authorities and without a client certificate.
type Transport struct {
	// MinTLS is "1.2" (also if empty) or "1.3". Nothing lower is ever spoken, and the newest that both sides know is.
	MinTLS string `json:"min_tls,omitempty"`
	// CAPEM holds the certificates that are trusted in place of the system's. An https proxy's isn't checked against them.
	CAPEM string `json:"ca_pem,omitempty"`
	// ClientCertPEM is the chain that Kapsel shows to the receiver, its own certificate first; ClientKeyPEM is its key.
	ClientCertPEM string `json:"client_cert_pem,omitempty"`
	ClientKeyPEM  string `json:"client_key_pem,omitempty"`
	// ProxyURL is a forward proxy, http or https, that is asked to CONNECT; it may hold a user name and a password.
	ProxyURL string `json:"proxy_url,omitempty"`
}

// The bounds of a transport's settings.
const (
	MaxPEM     = 64 << 10 // bytes of each
	maxChain   = 10       // certificates
	minRSABits = 2048
)

// Checked says whether a destination can be reached so, and if not, why. The error begins with the member's name and never
// holds any part of its value. It returns the settings with the certificates alone, without the text that may stand between
// them and is nobody's business, and when the client certificate expires, if there is one.
func (t Transport) Checked(now time.Time, allow ...netip.Prefix) (checked Transport, expires time.Time, err error) {
	if t.MinTLS != "" && t.MinTLS != "1.2" && t.MinTLS != "1.3" {
		return t, expires, errors.New(`min_tls must be "1.2" or "1.3"`)
	}
	if t.CAPEM != "" {
		if t.CAPEM, err = checkedCAs(t.CAPEM, now); err != nil {
			return t, expires, err
		}
	}
	if t.ClientCertPEM != "" || t.ClientKeyPEM != "" {
		if t.ClientCertPEM, expires, err = checkedClientCert(t.ClientCertPEM, t.ClientKeyPEM, now); err != nil {
			return t, expires, err
		}
	}
	if t.ProxyURL != "" {
		err = validateProxyURL(t.ProxyURL, allow)
	}
	return t, expires, err
}

func checkedCAs(text string, now time.Time) (string, error) {
	certificates, err := parseCertificates("ca_pem", text)
	if err != nil {
		return "", err
	}
	// Bundles hold some that have expired.
	if !slices.ContainsFunc(certificates, func(c *x509.Certificate) bool { return now.Before(c.NotAfter) }) {
		return "", errors.New("ca_pem must hold a certificate that has not expired")
	}
	return encodeCertificates(certificates), nil
}

// checkedClientCert checks a chain with its key as tls.X509KeyPair does, and what that leaves to the receiver to find.
func checkedClientCert(chain, key string, now time.Time) (checked string, expires time.Time, err error) {
	if chain == "" {
		return "", expires, errors.New("client_cert_pem is needed where there is a client_key_pem")
	}
	certificates, err := parseCertificates("client_cert_pem", chain)
	if err != nil {
		return "", expires, err
	}
	if len(certificates) > maxChain {
		return "", expires, fmt.Errorf("client_cert_pem must hold at most %d certificates, not %d", maxChain, len(certificates))
	}
	for i, c := range certificates {
		switch {
		case !now.Before(c.NotAfter):
			return "", expires, fmt.Errorf("client_cert_pem must not hold a certificate that has expired, as number %d of the chain has", i+1)
		case i > 0 && certificates[i-1].CheckSignatureFrom(c) != nil:
			return "", expires, fmt.Errorf("client_cert_pem must be a chain, each certificate signed by the next; number %d is not", i)
		case i == 0 || c.NotAfter.Before(expires):
			expires = c.NotAfter
		}
	}
	return encodeCertificates(certificates), expires, checkClientKey(chain, key)
}

func checkClientKey(chain, key string) error {
	if key == "" {
		return errors.New("client_key_pem is needed where there is a client_cert_pem")
	}
	if len(key) > MaxPEM {
		return fmt.Errorf("client_key_pem must have at most %d bytes, not %d", MaxPEM, len(key))
	}
	pair, err := tls.X509KeyPair([]byte(chain), []byte(key))
	if err != nil { // whose text is about the key
		return errors.New("client_key_pem must be the unencrypted key of the first certificate of client_cert_pem, in PEM (PKCS #8, or RSA or EC as OpenSSL writes it)")
	}
	switch k := pair.PrivateKey.(type) {
	case *rsa.PrivateKey:
		if k.N.BitLen() < minRSABits {
			return fmt.Errorf("client_key_pem must be an RSA key of at least %d bits, or ECDSA or Ed25519", minRSABits)
		}
	case *ecdsa.PrivateKey, ed25519.PrivateKey:
	default:
		return errors.New("client_key_pem must be RSA, ECDSA or Ed25519")
	}
	return nil
}

// parseCertificates wants nothing but certificates, so that no key is stored, or shown, as one.
func parseCertificates(member, text string) (certificates []*x509.Certificate, err error) {
	if len(text) > MaxPEM {
		return nil, fmt.Errorf("%s must have at most %d bytes, not %d", member, MaxPEM, len(text))
	}
	rest := []byte(text)
	for len(bytes.TrimSpace(rest)) > 0 {
		var block *pem.Block
		if block, rest = pem.Decode(rest); block == nil || block.Type != "CERTIFICATE" {
			return nil, fmt.Errorf("%s must hold certificates in PEM and nothing else", member)
		}
		c, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			return nil, fmt.Errorf("%s must hold X.509 certificates; number %d is malformed", member, len(certificates)+1)
		}
		certificates = append(certificates, c)
	}
	if len(certificates) == 0 {
		return nil, fmt.Errorf("%s must hold a certificate in PEM", member)
	}
	return certificates, nil
}

func encodeCertificates(certificates []*x509.Certificate) string {
	var b strings.Builder
	for _, c := range certificates {
		_ = pem.Encode(&b, &pem.Block{Type: "CERTIFICATE", Bytes: c.Raw}) // a Builder never fails
	}
	return b.String()
}

// tlsConfig makes what connections of this transport are configured by. roots are trusted where the transport names none.
func (t Transport) tlsConfig(roots *x509.CertPool) (*tls.Config, error) {
	config := &tls.Config{MinVersion: tls.VersionTLS12, RootCAs: roots, NextProtos: []string{"h2", "http/1.1"}}
	if t.MinTLS == "1.3" {
		config.MinVersion = tls.VersionTLS13
	}
	if t.CAPEM != "" {
		config.RootCAs = x509.NewCertPool()
		if !config.RootCAs.AppendCertsFromPEM([]byte(t.CAPEM)) {
			return nil, errors.New("ca_pem holds no certificate")
		}
	}
	if t.ClientCertPEM != "" {
		pair, err := tls.X509KeyPair([]byte(t.ClientCertPEM), []byte(t.ClientKeyPEM))
		if err != nil {
			return nil, errors.New("client certificate and key can't be used")
		}
		// Whatever the receiver says it would take: an answer about the certificate tells more than one about its lack.
		config.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return &pair, nil }
	}
	return config, nil
}

// key tells transports apart. Those of one key share their connections, so it depends on everything in them.
func (t Transport) key() [sha256.Size]byte {
	h := sha256.New()
	for _, part := range []string{t.MinTLS, t.CAPEM, t.ClientCertPEM, t.ClientKeyPEM, t.ProxyURL} {
		_ = binary.Write(h, binary.BigEndian, uint64(len(part))) // a hash never fails
		h.Write([]byte(part))
	}
	return [sha256.Size]byte(h.Sum(nil))
}
