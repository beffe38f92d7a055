package webhook

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"net/url"
	"strconv"
	"strings"

	"code.dny.dev/ssrf"
)

// MaxURL is the length of the longest URL that can be delivered to, in bytes.
const MaxURL = 2048

// azureMetadata is Azure's metadata and DNS address. It lies in public space, so the registries of special addresses
// don't know it. (Those of the other clouds are link-local, shared or unique-local, which are refused anyway.)
var azureMetadata = netip.MustParsePrefix("168.63.129.16/32")

// newGuardian refuses every address that isn't on the public internet, unless it lies in one of the prefixes of allow.
func newGuardian(allow []netip.Prefix) *ssrf.Guardian {
	var v4, v6 []netip.Prefix
	for _, p := range allow {
		if p.Addr().Is4() {
			v4 = append(v4, p)
		} else {
			v6 = append(v6, p)
		}
	}
	return ssrf.New(ssrf.WithAnyPort(), ssrf.WithAllowedV4Prefixes(v4...), ssrf.WithAllowedV6Prefixes(v6...),
		ssrf.WithDeniedV4Prefixes(azureMetadata))
}

// ValidateURL says whether a destination can have this URL, and if not, why; never with any part of the URL, which may
// hold a secret. It must be http or https, with a host, without user information and fragment. An IP address in it must
// be public or in one of the prefixes of allow. A host name isn't resolved: what counts is the address that it has when
// it is dialed, which Client checks.
func ValidateURL(raw string, allow ...netip.Prefix) error {
	u, err := parseURL(raw)
	if err != nil {
		return err
	}
	addr, err := netip.ParseAddr(u.Hostname())
	if err != nil {
		return nil //nolint:nilerr // a name: what counts is the address that it has when it is dialed
	}
	if newGuardian(allow).SafeAddr(addr.Unmap()) != nil { // the mapped form reaches the IPv4 address
		return errors.New("url must not point to a private, local or reserved address")
	}
	return nil
}

func parseURL(raw string) (*url.URL, error) {
	if len(raw) > MaxURL {
		return nil, fmt.Errorf("url must have at most %d bytes, not %d", MaxURL, len(raw))
	}
	u, err := url.Parse(raw)
	switch {
	case err != nil:
		return nil, errors.New("url is malformed")
	case u.Scheme != "http" && u.Scheme != "https":
		return nil, errors.New("url must start with http:// or https://")
	case u.User != nil:
		return nil, errors.New("url must not hold a user name or password; configure a header instead")
	case strings.Contains(raw, "#"):
		return nil, errors.New("url must not have a fragment")
	case u.Hostname() == "":
		return nil, errors.New("url must have a host")
	case strings.HasSuffix(u.Host, ":") || u.Port() != "" && !validPort(u.Port()):
		return nil, errors.New("url must have a port of 1 to 65535, or none")
	}
	return u, nil
}

func validPort(s string) bool {
	n, err := strconv.ParseUint(s, 10, 16)
	return err == nil && n > 0
}

// blocked reports whether a dial failed because the guardian refused the address.
func blocked(err error) bool {
	return errors.Is(err, ssrf.ErrProhibitedIP) || errors.Is(err, ssrf.ErrProhibitedNetwork) || errors.Is(err, ssrf.ErrInvalidHostPort)
}

// isDNS reports whether err is of the resolver.
func isDNS(err error) bool {
	var e *net.DNSError
	return errors.As(err, &e)
}
