//! Records of the net namespace: links, addresses, routes, rules, settings.
