// Package eyes holds the tests of what watches over Kapsel: the alert rules, their runbooks and the dashboards in deploy.
package eyes
