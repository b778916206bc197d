"""Here so that array_api_compat can be imported; the package uses nothing of it."""
