package attestation

import (
	"errors"
	"fmt"
	"net/netip"
	"net/url"
	"strconv"
	"strings"

	"golang.org/x/net/idna"
)

// ErrEndpointURL is returned for a URL that a leaf can't name. Its message never quotes the URL, which may hold secrets.
var ErrEndpointURL = errors.New("unusable endpoint URL")

// MaxEndpointURL is the longest endpoint_url in bytes. With it, the longest origin and the longest words, a leaf stays
// below verify.MaxLeafSize, so no attempt is too large to be recorded.
const MaxEndpointURL = 2048

// secretPathHosts put credentials into the path of their webhook URLs. A leading dot stands for all hosts below.
var secretPathHosts = []string{
	"hooks.slack.com", "hooks.slack-gov.com", // Slack: /services/T…/B…/token
	"discord.com", ".discord.com", "discordapp.com", ".discordapp.com", // Discord: /api/webhooks/id/token
	".webhook.office.com", "outlook.office.com", "outlook.office365.com", // Teams: /webhookb2/…
	".logic.azure.com", ".powerplatform.com", // Power Automate: /workflows/id
	"hooks.zapier.com", ".make.com", "maker.ifttt.com", // /hooks/catch/…, /token, /trigger/…/with/key/…
	"api.telegram.org",                     // /bot<token>/…
	"open.feishu.cn", "open.larksuite.com", // /open-apis/bot/v2/hook/token
	"events.pagerduty.com", "webhook.site", // /integration/key/…, /token
}

// SecretPath reports whether the path of a destination is to be left out of leaves by default, because its host is known
// to put credentials there. A malformed URL counts as secret.
func SecretPath(rawURL string) bool {
	u, err := url.Parse(rawURL)
	if err != nil {
		return true
	}
	host, err := canonicalHost(u.Hostname())
	if err != nil {
		return true
	}
	for _, known := range secretPathHosts {
		if host == known || (known[0] == '.' && strings.HasSuffix(host, known)) {
			return true
		}
	}
	return false
}

// EndpointURL returns what a leaf says of where a request went: scheme://host[:port], lowercase, international names as
// A-labels, without a default port, then the path as it was escaped unless that is secret. User information, query and
// fragment never appear; url_hash commits to them. The error wraps ErrEndpointURL: destinations are checked with it when
// they are made, so that it can't come up when an attempt is recorded.
func EndpointURL(rawURL string, secretPath bool) (string, error) {
	u, err := url.Parse(rawURL)
	if err != nil { // its text quotes the URL
		return "", fmt.Errorf("malformed: %w", ErrEndpointURL)
	}
	defaultPort, ok := map[string]string{"http": "80", "https": "443"}[u.Scheme]
	if !ok {
		return "", fmt.Errorf("neither http nor https: %w", ErrEndpointURL)
	}
	host, err := canonicalHost(u.Hostname())
	if err != nil {
		return "", err
	}
	if port := u.Port(); port != "" {
		n, err := strconv.ParseUint(port, 10, 16)
		if err != nil || n == 0 {
			return "", fmt.Errorf("port is not in 1 to 65535: %w", ErrEndpointURL)
		}
		if port = strconv.FormatUint(n, 10); port != defaultPort {
			host += ":" + port
		}
	}
	result := u.Scheme + "://" + host
	if !secretPath {
		result += u.EscapedPath()
	}
	if len(result) > MaxEndpointURL {
		return "", fmt.Errorf("%d bytes without query, more than %d: %w", len(result), MaxEndpointURL, ErrEndpointURL)
	}
	return result, nil
}

// canonicalHost returns a host name in lowercase A-labels, or an IP address as netip writes it, IPv6 in brackets.
func canonicalHost(host string) (string, error) {
	if addr, err := netip.ParseAddr(host); err == nil {
		if addr = addr.WithZone(""); addr.Is6() {
			return "[" + addr.String() + "]", nil
		}
		return addr.String(), nil
	}
	host = strings.TrimSuffix(strings.ToLower(host), ".")
	if !isASCII(host) { // ASCII names are taken as they are: IDNA would refuse "_"
		ascii, err := idna.Lookup.ToASCII(host)
		if err != nil {
			return "", fmt.Errorf("host is not a valid international name: %w", ErrEndpointURL)
		}
		host = ascii
	}
	if host == "" || strings.Trim(host, hostAlphabet) != "" || strings.ContainsAny(host[:1]+host[len(host)-1:], "-.") {
		return "", fmt.Errorf("host is not a name or an IP address: %w", ErrEndpointURL)
	}
	return host, nil
}

const hostAlphabet = "abcdefghijklmnopqrstuvwxyz0123456789._-"

func isASCII(s string) bool {
	for i := range len(s) {
		if s[i] >= 0x80 {
			return false
		}
	}
	return true
}
