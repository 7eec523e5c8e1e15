"""The language of Kintsugi: records, their encodings, and the rules that keep both readable for ever.

Only relative imports are used in this package: it is also shipped inside `kintsugi_client`, under another name.
"""
